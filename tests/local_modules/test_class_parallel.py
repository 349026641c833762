"""The split classifier on two processes and on one, against the whole matrix and
autograd."""

import pytest
import torch
from speechbrain.lobes.models.ECAPA_TDNN import Classifier
from speechbrain.utils.checkpoints import Checkpointer
from torch import nn
from torch.nn import functional as F

from local_modules import class_parallel as module
from local_modules.class_parallel import (
    OptimizerRows,
    SplitClassifier,
    gradient_norm,
)
from local_modules.losses import AdditiveAngularMargin, CosineSoftmax
from local_modules.rows import load_rows, rows_of

SCALE, SIZE, N_SPEAKERS = 20.0, 6, 13
SHARES = (3, 2)  # of the batch: some recordings can't be decoded
TARGETS = torch.tensor([[0], [12], [4], [9], [12]])
MARGIN = AdditiveAngularMargin(angular_scale=SCALE, angular_margin=0.4)


def together(rank, count, folder):
    results = []
    for drawn_share in (1.0, 0.5):
        torch.manual_seed(1)
        classifier = SplitClassifier(SIZE, N_SPEAKERS, SCALE, drawn_share)
        embeddings = torch.randn(sum(SHARES), 1, SIZE).split(SHARES)[rank]
        targets = TARGETS.split(SHARES)[rank]
        embeddings.requires_grad_()
        torch.manual_seed(rank)
        cosines, zeros, correct = classifier(embeddings, targets)
        loss = MARGIN(cosines, zeros, 0.5)
        loss.backward()
        results.append(
            {
                "loss": loss.detach(),
                "correct": correct,
                "embeddings_grad": embeddings.grad,
                "weight_grad": classifier.weight.grad,
                "norm": gradient_norm(classifier),
            }
        )
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.1)
    optimizer.step()
    classifier._save(folder / "classifier.ckpt")
    OptimizerRows(optimizer, classifier)._save(folder / "optimizer_rows.ckpt")
    saved = {"weight": classifier.weight.detach().clone()}
    results.append(saved | optimizer.state[classifier.weight])
    torch.distributed.barrier()
    classifier.gather_rows()
    results.append(classifier.weight.detach())
    return results


def batch():
    """The matrix and the embeddings of all ranks, as they draw them."""
    torch.manual_seed(1)
    classifier = Classifier(SIZE, out_neurons=N_SPEAKERS)
    embeddings = torch.randn(sum(SHARES), 1, SIZE, requires_grad=True)
    return classifier, embeddings


@pytest.fixture(scope="module")
def on_two(on_ranks):
    return on_ranks(together, 2)


def drawn_rows(rank):
    """The rows of a rank that take part when half are drawn: its targets, and those
    with the highest random numbers."""
    own = rows_of(rank, 2, N_SPEAKERS)
    torch.manual_seed(rank)
    numbers = dict(zip(own, torch.rand(len(own)).tolist(), strict=True))
    numbers |= {row: 2.0 for row in TARGETS.flatten().tolist() if row in own}
    return sorted(own, key=numbers.get)[-round(len(own) / 2) :]


@pytest.mark.parametrize("case", [0, 1], ids=["all", "drawn"])
def test_two_ranks_have_the_loss_and_gradients_of_the_whole_matrix(on_two, case):
    classifier, embeddings = batch()
    cosines = classifier(embeddings)
    if case:
        kept = [row for rank in (0, 1) for row in drawn_rows(rank)]
        left_out = [row for row in range(N_SPEAKERS) if row not in kept]
        assert len(kept) == 7
        cosines[..., left_out] = -torch.inf
    losses = [
        MARGIN(part, targets, 0.5)
        for part, targets in zip(
            cosines.split(SHARES), TARGETS.split(SHARES), strict=True
        )
    ]
    # What DDP minimises; each embedding's gradient goes on to the mean over the ranks.
    (sum(losses) / 2).backward()
    right = (cosines.argmax(dim=-1) == TARGETS).split(SHARES)
    for rank, (results, loss) in enumerate(zip(on_two[0], losses, strict=True)):
        found = results[case]
        torch.testing.assert_close(found["loss"], loss.detach())
        assert torch.equal(found["correct"], right[rank])
        own = embeddings.grad.split(SHARES)[rank]
        torch.testing.assert_close(found["embeddings_grad"] / 2, own)
        rows = rows_of(rank, 2, N_SPEAKERS)
        expected = classifier.weight.grad[rows.start : rows.stop]
        torch.testing.assert_close(found["weight_grad"], expected)
        torch.testing.assert_close(found["norm"], classifier.weight.grad.norm())


def test_any_number_of_ranks_loads_what_two_have_saved(on_two):
    results, folder = on_two
    for name, file in (
        ("weight", "classifier.ckpt"),
        ("exp_avg", "optimizer_rows.ckpt"),
        ("exp_avg_sq", "optimizer_rows.ckpt"),
    ):
        whole = torch.cat([result[2][name] for result in results])
        assert len(whole) == N_SPEAKERS
        for count in (1, 2, 3):
            parts = [
                load_rows(folder / file, rows_of(rank, count, N_SPEAKERS))[name]
                for rank in range(count)
            ]
            assert torch.equal(torch.cat(parts), whole)


def test_the_first_rank_gathers_the_whole_matrix(on_two):
    results, _ = on_two
    whole = torch.cat([result[2]["weight"] for result in results])
    assert torch.equal(results[0][3], whole)


@pytest.mark.parametrize("loss", [MARGIN, CosineSoftmax(SCALE)])
@pytest.mark.parametrize("margin_share", [0.0, 1.0])
@pytest.mark.parametrize("size", [0.01, 100.0])
def test_one_process_has_the_loss_and_gradients_of_autograd(loss, margin_share, size):
    whole, embeddings = batch()
    torch.manual_seed(1)
    split = SplitClassifier(SIZE, N_SPEAKERS, SCALE)
    # Drawn as SpeechBrain draws it.
    torch.testing.assert_close(split.weight, whole.weight)
    with torch.no_grad():
        # Some right by far, some wrong by far.
        embeddings[:3, 0] = whole.weight[TARGETS[:3, 0]]
        embeddings[3, 0] = -whole.weight[TARGETS[3, 0]]
        embeddings.mul_(size)
    others = embeddings.detach().clone().requires_grad_()
    cosines, zeros, correct = split(others, TARGETS)
    found, expected = (
        loss(cosines, zeros, margin_share),
        loss(whole(embeddings), TARGETS, margin_share),
    )
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    # The shorter an embedding, the steeper.
    torch.testing.assert_close(size * others.grad, size * embeddings.grad)
    torch.testing.assert_close(split.weight.grad, whole.weight.grad)
    assert torch.equal(correct, whole(embeddings).argmax(dim=-1) == TARGETS)
    torch.testing.assert_close(split(embeddings), whole(embeddings))


@pytest.mark.parametrize("rows_at_once", [1, 5, 12])
def test_a_matrix_drawn_piece_by_piece_is_the_one_drawn_at_once(
    rows_at_once, monkeypatch
):
    """Whoever has which rows: pieces and ranks end in the middle of each other."""
    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows_at_once)
    for count in (1, 3):
        parts = []
        for rank in range(count):
            place = rank, count
            monkeypatch.setattr(module, "rank_and_count", lambda place=place: place)
            torch.manual_seed(1)
            parts.append(SplitClassifier(SIZE, N_SPEAKERS, SCALE).weight.detach())
        assert [len(part) for part in parts] in ([13], [4, 4, 5])
        torch.testing.assert_close(torch.cat(parts), batch()[0].weight.detach())


def test_rounded_embeddings_are_compared_in_float32():
    classifier, embeddings = batch()
    torch.manual_seed(1)
    split = SplitClassifier(SIZE, N_SPEAKERS, SCALE)
    cosines, _, _ = split(embeddings.bfloat16(), TARGETS)
    expected = F.linear(
        F.normalize(embeddings.bfloat16().float().squeeze(1)),
        F.normalize(classifier.weight),
    ).gather(1, TARGETS)
    assert cosines.dtype == torch.float32
    torch.testing.assert_close(cosines[:, :, 0], expected)


def test_the_batchs_speakers_are_always_drawn_and_the_others_all_in_turn():
    classifier = SplitClassifier(SIZE, 100, SCALE, drawn_share=0.1)
    positives = torch.tensor([3, 99])
    counts = torch.zeros(100)
    for _ in range(300):
        drawn = classifier.draw(positives)
        assert len(drawn) == 10 and (drawn.diff() > 0).all()
        counts[drawn] += 1
    assert (counts[positives] == 300).all()
    # Eight of the 98 others each time: 24.5 on the average, within five deviations.
    others = counts[[row for row in range(100) if row not in (3, 99)]]
    assert others.min() > 1 and others.max() < 50
    many = torch.arange(0, 100, 5)
    assert torch.equal(classifier.draw(many), many)


def test_rows_that_take_no_part_have_no_gradient():
    classifier = SplitClassifier(SIZE, 100, SCALE, drawn_share=0.1)
    cosines, zeros, _ = classifier(torch.randn(2, 1, SIZE), torch.tensor([[3], [99]]))
    MARGIN(cosines, zeros).backward()
    moved = classifier.weight.grad.abs().sum(dim=1) > 0
    assert moved.sum() == 10 and moved[3] and moved[99]


def test_a_checkpoint_brings_back_rows_and_moments(tmp_path):
    def trained():
        classifier = SplitClassifier(SIZE, N_SPEAKERS, SCALE)
        optimizer = torch.optim.Adam(classifier.parameters())
        parts = {
            "classifier": classifier,
            "optimizer": optimizer,
            "optimizer_rows": OptimizerRows(optimizer, classifier),
        }
        cosines, zeros, _ = classifier(torch.randn(5, 1, SIZE), TARGETS)
        MARGIN(cosines, zeros).backward()
        optimizer.step()
        return Checkpointer(tmp_path, parts), classifier, optimizer

    checkpointer, saved, saved_optimizer = trained()
    checkpointer.save_checkpoint()
    checkpointer, loaded, optimizer = trained()
    checkpointer.recover_if_possible()
    assert torch.equal(loaded.weight, saved.weight)
    for name, value in saved_optimizer.state[saved.weight].items():
        assert torch.equal(optimizer.state[loaded.weight][name], value)


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_share_is_a_share(share):
    with pytest.raises(ValueError, match=f"drawn_share {share}"):
        SplitClassifier(SIZE, N_SPEAKERS, SCALE, share)


def test_the_norm_of_all_gradients_is_that_of_one_vector():
    classifier, linear = SplitClassifier(SIZE, N_SPEAKERS, SCALE), nn.Linear(3, 2)
    module = nn.ModuleList([classifier, linear])
    for number, parameter in enumerate(module.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    whole = torch.cat([p.grad.flatten() for p in module.parameters()])
    torch.testing.assert_close(gradient_norm(module), whole.norm())


def test_where_no_speaker_of_a_batch_is_one_row_is_drawn():
    classifier = SplitClassifier(SIZE, N_SPEAKERS, SCALE, drawn_share=0.01)
    assert len(classifier.draw(torch.tensor([], dtype=torch.int64))) == 1
