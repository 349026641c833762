import pytest

from local_modules.errors import RunError
from recipes.commonvoice.prepare import prepare

COLUMNS = (
    "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\t"
    "age\tgender\taccents\tvariant\tlocale\tsegment"
)


def row(client, clip, sentence="Hello."):
    return f"{client}\t{clip}\t5f\t{sentence}\t\t2\t0\ttwenties\t\t\t\ten\t"


@pytest.fixture
def clients(corpus):
    """Eight speakers with two validated clips; an invalidated clip beside them."""
    names = [f"{s:02x}" * 64 for s in range(8)]
    clips = [
        (c, f"common_voice_en_{n}{u}.mp3") for n, c in enumerate(names) for u in "12"
    ]
    corpus.add(*[f"clips/{clip}" for _, clip in clips], "clips/common_voice_en_99.mp3")
    lines = [COLUMNS, *(row(*one) for one in clips)]
    # Quotation marks are part of the sentence, also where only one is there.
    lines[1] = row(*clips[0], sentence='"Hello, he said.')
    (corpus.data / "validated.tsv").write_text("\n".join(lines) + "\n")
    return corpus


def test_a_language(clients):
    prepare(str(clients.data), str(clients.save))
    rows = [one for part in clients.splits().values() for one in part]
    assert len(rows) == 16
    assert all(len(one.speaker) == 128 for one in rows)
    assert {one.path for one in rows} == {
        f"clips/common_voice_en_{n}{u}.mp3" for n in range(8) for u in "12"
    }
    assert all(0.5 < one.duration < 0.75 for one in rows)
    assert clients.trials("test").labels.tolist() == [True] * 2 + [False] * 2


def test_a_table_with_a_byte_order_mark(clients):
    path = clients.data / "validated.tsv"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    prepare(str(clients.data), str(clients.save))
    assert len(clients.splits()["train"]) == 8


def test_names_of_the_first_releases(clients):
    path = clients.data / "validated.tsv"
    path.write_text(path.read_text().replace(".mp3", ""))
    prepare(str(clients.data), str(clients.save))
    assert clients.splits()["train"][0].path.endswith(".mp3")


def test_a_clip_is_missing_and_one_is_listed_twice(clients):
    (clients.data / "clips/common_voice_en_11.mp3").unlink()
    with open(clients.data / "validated.tsv", "a") as file:
        file.write(row("00" * 64, "common_voice_en_01.mp3") + "\n")
    message = clients.failure(prepare, RunError)
    assert "2 of 17 audio files" in message
    prepare(str(clients.data), str(clients.save), max_bad_share=0.2)
    assert (clients.save / "skipped.csv").read_text().splitlines()[1:] == [
        "clips/common_voice_en_11.mp3,does not exist",
        "clips/common_voice_en_01.mp3,has the ID of clips/common_voice_en_01.mp3",
    ]


def test_a_row_that_lacks_something_is_skipped(clients):
    with open(clients.data / "validated.tsv", "a") as file:
        file.write("\tcommon_voice_en_99.mp3\nann\n")
    assert "2 of 18 audio files" in clients.failure(prepare, RunError)
    prepare(str(clients.data), str(clients.save), max_bad_share=0.2)
    assert (clients.save / "skipped.csv").read_text().splitlines()[1:] == [
        "validated.tsv:18,lacks client_id or path",
        "validated.tsv:19,lacks client_id or path",
    ]


def test_what_is_no_common_voice(clients):
    path = clients.data / "validated.tsv"
    path.write_text("client\tpath\nann\t1.mp3\n")
    assert f"{path}: has no column client_id" in clients.failure(prepare)
    path.write_text("client_id\tpath\n\t1.mp3\n")
    message = clients.failure(prepare, RunError)
    assert "validated.tsv:2, lacks client_id or path" in message
    path.unlink()
    assert "has no validated.tsv" in clients.failure(prepare)
