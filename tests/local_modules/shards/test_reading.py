"""Reading shards: against the source files, through a real web server and a pipe."""

import functools
import http.server
import shutil
import threading
from dataclasses import replace

import pytest
import torch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.dataio.sampler import DistributedSamplerWrapper
from speechbrain.utils.checkpoints import Checkpointer

from local_modules.audio import UtteranceReader
from local_modules.errors import InputError, RunError
from local_modules.manifest import write_manifest
from local_modules.shards import reading
from local_modules.shards.reading import ShardReader
from local_modules.training.sampling import ShardSampler


class Utterances(torch.utils.data.Dataset):
    """Crops and places of utterances."""

    def __init__(self, packed, reader):
        self.rows, self.data, self.reader = packed.utterances, packed.data, reader

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        u = self.rows[place]
        wav = self.reader(u.id, str(self.data / u.path), u.start, u.stop)
        return place, wav


@pytest.fixture
def server(packed):
    """Address of a web server with the shards, and the paths asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=packed.folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}", asked
        found.shutdown()


@pytest.mark.parametrize("crop_seconds", [None, 0.1])
def test_shards_give_the_bits_of_the_files(crop_seconds, packed, tmp_path):
    shards = ShardReader(str(packed.folder), packed.manifest, tmp_path)
    readers = [
        UtteranceReader(16000, crop_seconds, 3, shards=source, speeds=[1.0, 0.9])
        for source in (None, shards)
    ]
    for epoch in (1, 2):
        for reader in readers:
            reader.set_epoch(epoch)
        pairs = zip(*(Utterances(packed, reader) for reader in readers), strict=True)
        for place, ((_, one), (_, other)) in zip(range(30), pairs, strict=False):
            assert torch.equal(one, other), packed.utterances[place]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["server", "pipe"])
def test_from_elsewhere_each_shard_is_fetched_once(kind, packed, server, tmp_path):
    address, asked = server
    count = tmp_path / "count"
    if kind == "pipe":
        address = f"pipe:echo /{{}} >> {count}; cat {packed.folder}/{{}}"
    shards = ShardReader(address, packed.manifest, tmp_path / "cache")
    data = Utterances(packed, UtteranceReader(16000, shards=shards))
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2)
    local = ShardReader(str(packed.folder), packed.manifest, tmp_path)
    alone = Utterances(packed, UtteranceReader(16000, shards=local))
    for _ in range(2):
        for (_, one), place in zip(loader, range(len(data)), strict=True):
            assert torch.equal(one, alone[place][1])
    if kind == "pipe":
        asked = count.read_text().splitlines()
    assert sorted(asked) == [f"/train-00000{n}.tar" for n in range(5)] + ["/train.json"]


def test_what_arrives_damaged_is_not_kept(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WAITS", (0.0,))
    shutil.copytree(packed.folder, tmp_path / "shards")
    for path in (tmp_path / "shards").glob("*.tar"):
        path.write_bytes(path.read_bytes()[:-1])
    cache = tmp_path / "cache"
    shards = ShardReader(f"pipe:cat {tmp_path}/shards/{{}}", packed.manifest, cache)
    with pytest.raises(RunError, match=r"train-00000\d.tar cannot be fetched"):
        shards.read(packed.utterances[0].id)
    assert not list(cache.glob("*.tar")) and not list(cache.glob("*.part"))


def test_what_fails_once_is_fetched_again(packed, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(reading, "WAITS", (0.0,))
    failed = tmp_path / "failed"
    command = (
        f"case {{}} in *.tar) if ! [ -e {failed} ]; then touch {failed}; exit 3; fi;; "
        f"esac; cat {packed.folder}/{{}}"
    )
    shards = ShardReader(f"pipe:{command}", packed.manifest, tmp_path / "cache")
    local = ShardReader(str(packed.folder), packed.manifest, tmp_path)
    first = packed.utterances[0].id
    assert shards.read(first) == local.read(first)
    assert "fetched again" in caplog.text and "status 3" in caplog.text


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("{folder}/none", "train.json: No such file"),
        ("{address}/none", "train.json cannot be fetched .*404"),
        ("http://127.0.0.1:1", "train.json cannot be fetched"),
        ("pipe:cat {folder}/none/{{}}", "train.json cannot be fetched .*status 1"),
        ("pipe:cat {folder}", "has no {}; put it"),
    ],
)
def test_a_wrong_place_is_named(location, words, packed, server, tmp_path):
    location = location.format(folder=packed.folder, address=server[0])
    with pytest.raises(InputError, match=words) as caught:
        ShardReader(location, packed.manifest, tmp_path)
    assert f"--shards {location}: " in str(caught.value)


def test_another_manifest_of_the_same_ids_is_refused(packed, tmp_path):
    """Its stretches may be others."""
    later = [replace(u, start=u.start + 1) for u in packed.utterances]
    write_manifest(tmp_path / "train.csv", later)
    with pytest.raises(InputError, match="packed from another train.csv than .*train"):
        ShardReader(str(packed.folder), tmp_path / "train.csv", tmp_path)


def test_utterances_that_were_not_packed_are_counted(packed, tmp_path):
    shards = ShardReader(str(packed.folder), packed.manifest, tmp_path)
    ids = [u.id for u in packed.utterances]
    assert sorted(set(shards.numbers(ids, 0.0))) == [0, 1, 2, 3, 4]
    assert shards.numbers([*ids, "new"], 0.1)[-1] == -1
    with pytest.raises(InputError, match="lacks 1 of 31 .*first new"):
        shards.numbers([*ids, "new"], 0.01)


def test_a_corrupt_member_is_named_and_skipped(packed, tmp_path, caplog):
    folder = tmp_path / "shards"
    shutil.copytree(packed.folder, folder)
    shards = ShardReader(str(folder), packed.manifest, tmp_path)
    shard = shards.shards[1]
    broken, member = list(shard.members.items())[2]
    content = bytearray((folder / shard.name).read_bytes())
    content[member.offset + member.size - 9] ^= 4  # in the samples; most decoders go on
    (folder / shard.name).write_bytes(content)
    data = Utterances(packed, UtteranceReader(16000, shards=shards))
    lost = {packed.utterances[place].id for place, wav in map(data.__getitem__,
            range(len(data))) if wav is None}  # fmt: skip
    assert lost == {broken}
    (record,) = caplog.records
    assert str(folder / shard.name) in record.message
    path = next(u.path for u in packed.utterances if u.id == broken)
    assert path in record.message


def loader_of(packed, tmp_path, epoch, n_ranks=1, rank=0, n_workers=2):
    """As training makes it."""
    shards = ShardReader(str(packed.folder), packed.manifest, tmp_path)
    reader = UtteranceReader(16000, 0.1, seed=5, shards=shards)
    reader.set_epoch(epoch)
    numbers = shards.numbers([u.id for u in packed.utterances], 0.0)
    sampler = ShardSampler(numbers, epochs_per_pass=1, seed=5, n_open=2)
    if n_ranks > 1:
        sampler = DistributedSamplerWrapper(
            sampler, num_replicas=n_ranks, rank=rank, shuffle=False
        )
    sampler.set_epoch(epoch)
    return SaveableDataLoader(
        Utterances(packed, reader), batch_size=4, sampler=sampler, num_workers=n_workers
    )


@pytest.mark.parametrize("n_workers", [0, 2])
def test_ranks_and_workers_share_an_epoch(n_workers, packed, tmp_path):
    n_ranks, found = 3, []
    for rank in range(n_ranks):
        loader = loader_of(packed, tmp_path, 2, n_ranks, rank, n_workers)
        found += [place for places, _ in loader for place in places.tolist()]
    assert sorted(found) == list(range(len(packed.utterances)))  # 30, 10 for each


@pytest.mark.parametrize(("n_ranks", "n_workers"), [(1, 0), (1, 2), (2, 2)])
def test_an_epoch_continues_in_its_middle(n_ranks, n_workers, packed, tmp_path):
    options = {"n_ranks": n_ranks, "rank": n_ranks - 1, "n_workers": n_workers}
    whole = list(loader_of(packed, tmp_path, 3, **options))
    stopped = loader_of(packed, tmp_path, 3, **options)
    batches = iter(stopped)
    for _ in range(3):
        next(batches)
    Checkpointer(tmp_path / "save", {"loader": stopped}).save_checkpoint(
        end_of_epoch=False
    )
    continued = loader_of(packed, tmp_path, 3, **options)
    saved = Checkpointer(tmp_path / "save", {"loader": continued})
    assert saved.recover_if_possible() is not None
    rest = list(continued)
    assert len(rest) == len(whole) - 3
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
