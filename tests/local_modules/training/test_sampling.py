"""The order of the utterances: whole passes, whatever the number of epochs in one."""

import pytest
from speechbrain.dataio.sampler import ReproducibleRandomSampler

from local_modules.errors import InputError
from local_modules.training import sampling
from local_modules.training.sampling import PassSampler, ShardSampler


def orders(sampler, n_epochs):
    found = []
    for epoch in range(1, n_epochs + 1):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(found[-1]) == len(sampler)
    return found


def test_one_epoch_a_pass_is_speechbrains_order():
    theirs = ReproducibleRandomSampler(range(50), seed=7)
    assert orders(PassSampler(range(50), 1, 7), 4) == orders(theirs, 4)


@pytest.mark.parametrize("epochs_per_pass", [2, 3, 7])
def test_the_epochs_of_a_pass_see_everything_once(epochs_per_pass):
    n = 6 * epochs_per_pass + epochs_per_pass - 1
    found = orders(PassSampler(range(n), epochs_per_pass, 3), 3 * epochs_per_pass)
    for first in range(0, len(found), epochs_per_pass):
        seen = sum(found[first : first + epochs_per_pass], [])
        assert len(set(seen)) == len(seen) == 6 * epochs_per_pass
    assert found[0] != found[epochs_per_pass]  # another pass, another order


def test_an_epoch_needs_no_earlier_one():
    whole = orders(PassSampler(range(40), 4, 5), 7)
    sampler = PassSampler(range(40), 4, 5)
    sampler.set_epoch(7)
    assert list(sampler) == whole[6] == list(sampler)


def test_another_seed_gives_another_order():
    assert orders(PassSampler(range(40), 2, 1), 1) != orders(
        PassSampler(range(40), 2, 8), 1
    )


@pytest.mark.parametrize("epochs_per_pass", [0, -1, 21])
def test_a_pass_of_no_epoch_or_of_too_many_is_named(epochs_per_pass):
    with pytest.raises(InputError, match=f"--epochs_per_pass {epochs_per_pass}: .* 20"):
        PassSampler(range(40), epochs_per_pass, 1)


class TestShards:
    SHARD_OF = [place * 7 % 10 for place in range(85)]

    def sampler(self, seed=3, n_open=4, epochs_per_pass=1):
        return ShardSampler(self.SHARD_OF, epochs_per_pass, seed, n_open)

    def test_seed_and_epoch_decide(self):
        once, again = orders(self.sampler(), 4), orders(self.sampler(), 4)
        assert once == again
        assert all(sorted(order) == list(range(85)) for order in once)
        assert len({tuple(order) for order in once}) == 4
        assert orders(self.sampler(seed=4), 1) != once[:1]
        last = self.sampler()
        last.set_epoch(4)
        assert list(last) == once[3]

    def test_epochs_share_a_pass(self):
        (whole,) = orders(self.sampler(), 1)
        assert sum(orders(self.sampler(epochs_per_pass=5), 5), []) == whole

    @pytest.mark.parametrize("n_open", [1, 4, 20])
    def test_so_many_shards_are_open(self, n_open):
        (order,) = orders(self.sampler(n_open=n_open), 1)
        shards = [self.SHARD_OF[place] for place in order]
        last = {shard: place for place, shard in enumerate(shards)}
        n_begun = [
            len({s for s in shards[: place + 1] if last[s] >= place})
            for place in range(len(shards))
        ]
        assert max(n_begun) == min(n_open, 10)
        # Neither the shards nor what is in them keeps its order.
        assert list(dict.fromkeys(shards)) != sorted(set(shards))
        of_one = [place for place in order if self.SHARD_OF[place] == shards[0]]
        assert of_one != sorted(of_one)

    def test_no_open_shard_is_named(self):
        with pytest.raises(InputError, match="--open_shards 0"):
            self.sampler(n_open=0)


def test_every_rank_needs_two_utterances_of_an_epoch(monkeypatch):
    monkeypatch.setattr(sampling, "rank_and_count", lambda: (0, 4))
    PassSampler(range(40), 5, 1)
    with pytest.raises(InputError, match="--epochs_per_pass 6: .* 5"):
        PassSampler(range(40), 6, 1)
