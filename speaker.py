#!/usr/bin/env python3
"""Uses a trained model: compares voices, embeds recordings, identifies speakers.

python speaker.py verify one.wav two.wav
python speaker.py embed recordings/ -o vectors.npy
python speaker.py enroll ann monday.wav tuesday.wav
python speaker.py identify unknown.wav
python speaker.py list
python speaker.py remove ann
python speaker.py serve
"""

import argparse
import contextlib
import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from local_modules.errors import (
    InputError,
    LineParser,
    RunError,
    add_trust,
    exit_status,
    printable,
)

# What needs PyTorch is imported where it is used: --help and usage errors don't wait
# for it.
if TYPE_CHECKING:
    from local_modules.inference.verification import Verifier, Voice
    from local_modules.inference.voices import Enrolled, VoiceStore

VOICES = "voices.db"  # beside the model's folder


def verify(options: argparse.Namespace, verifier: "Verifier") -> tuple[dict, str]:
    """Decides whether two recordings are of one person."""
    from local_modules.inference.verification import certainty

    one, other = (listen(verifier, path) for path in (options.one, options.other))
    (verdict,) = verifier.compare([[one]], other, options.prior)
    lines = ["same speaker" if verdict.same else "different speakers"]
    if verdict.llr is None:
        lines += [
            f"cosine {verdict.score:.3f}; the model has no calibration, the threshold "
            f"is {verifier.threshold:.3f}"
        ]
    else:
        lines[0] += f", {certainty(verdict.probability)} (prior {options.prior:g})"
        lines += [f"log-likelihood ratio {verdict.llr:.2f}, cosine {verdict.score:.3f}"]
    return asdict(verdict), "\n".join(lines)


def embed(options: argparse.Namespace, verifier: "Verifier") -> tuple[dict, str]:
    """Writes the embeddings of recordings and of folders of recordings."""
    from local_modules.inference.embedding_files import embed_to_file, find_recordings

    paths = find_recordings(options.recordings)
    n, failures = embed_to_file(verifier.model, paths, Path(options.output))
    for path, reason in failures.items():
        print(f"left out: {printable(f'{path}: {reason}')}", file=sys.stderr)
    if not n:
        raise RunError(f"none of {len(paths)} recordings could be embedded")
    found = {"output": options.output, "n": n, "n_left_out": len(failures)}
    return found, f"{n} embeddings in {options.output}; {len(failures)} left out"


def enroll(options: argparse.Namespace, verifier: "Verifier") -> tuple[dict, str]:
    """Enrols a person who has consented."""
    voices = [listen(verifier, path) for path in options.recordings]
    with open_voices(options, verifier, makes_one=True) as store:
        known = store.voices([options.name])[0] if options.name in store else []
        for path, voice in zip(options.recordings, voices, strict=True):
            if known and not verifier.compare([known], voice)[0].same:
                print(
                    f"{path}: does not sound like {options.name} did before; if it is "
                    f"another person, remove {options.name} and enrol both again",
                    file=sys.stderr,
                )
        store.add(options.name, voices)
        (enrolled,) = (v for v in store.enrolled() if v.name == options.name)
        return asdict(enrolled), f"{described(enrolled)} in {store.path}"


def identify_recording(
    options: argparse.Namespace, verifier: "Verifier"
) -> tuple[dict, str]:
    """Identifies the speaker of a recording among those enrolled, if any."""
    from local_modules.inference.identification import Identifier

    voice = listen(verifier, options.recording)
    with open_voices(options, verifier) as store:
        answer = Identifier(verifier).identify(store, voice, options.top, options.prior)
    if not answer.candidates:
        raise InputError(f"nobody is enrolled in {store.path}")
    lines = [answer.name or "nobody"]
    for candidate in answer.candidates:
        sure = ""
        if candidate.probability is not None:
            sure = f"{100 * candidate.probability:5.1f} %  ratio {candidate.llr:6.2f}  "
        lines.append(f"  {sure}cosine {candidate.score:.3f}  {candidate.name}")
    if answer.nobody is not None:
        lines.append(f"  {100 * answer.nobody:5.1f} %  nobody enrolled")
    return asdict(answer), "\n".join(lines)


def list_voices(options: argparse.Namespace, _: None) -> tuple[dict, str]:
    """Lists who is enrolled."""
    with open_voices(options) as store:
        voices = store.enrolled()
        lines = [described(voice) for voice in voices]
        return {"voices": [asdict(voice) for voice in voices]}, "\n".join(
            lines or [f"nobody is enrolled in {store.path}"]
        )


def remove(options: argparse.Namespace, _: None) -> tuple[dict, str]:
    """Removes an enrolled person."""
    with open_voices(options) as store:
        store.remove(options.name)
        return {"removed": options.name}, f"{options.name} removed from {store.path}"


def serve_page(options: argparse.Namespace, verifier: "Verifier") -> tuple[dict, str]:
    """Serves a local page for all of this, with a microphone, until Ctrl-C."""
    from local_modules.page.answers import Answers
    from local_modules.page.server import serve

    with open_voices(options, verifier, makes_one=True):
        pass  # another model's voices are refused before the page is up
    answers = Answers(
        verifier, lambda: open_voices(options, verifier, makes_one=True), options.prior
    )
    serve(answers, verifier.model.source, options.host, options.port)
    return {}, "The page is closed."


def listen(verifier: "Verifier", path: str) -> "Voice":
    """Embeds a recording, and prints a warning if its quality is poor."""
    voice = verifier.listen(path)
    if voice.quality.warning:
        print(f"{path}: {voice.quality.warning}", file=sys.stderr)
    return voice


def open_voices(
    options: argparse.Namespace,
    verifier: "Verifier | None" = None,
    makes_one: bool = False,
) -> "VoiceStore":
    """The file of enrolled voices, as a context manager; without a verifier, those of
    any model. `makes_one` creates a missing file."""
    from local_modules.inference.speaker_model import kept_beside
    from local_modules.inference.voices import VoiceStore

    path = options.voices or kept_beside(options.model, VOICES)
    if not (makes_one or Path(path).exists()):
        raise InputError(
            f"nobody is enrolled in {path}: there is no such file; --voices FILE names "
            "another"
        )
    if verifier is None:
        return VoiceStore(path)
    return VoiceStore(path, verifier.model.fingerprint, options.model)


def described(voice: "Enrolled") -> str:
    """An enrolled voice in one line."""
    return (
        f"{voice.name}: {voice.n_recordings} recording(s), "
        f"{voice.speech_seconds:.1f} s of speech at {voice.level_db:.0f} dB, "
        f"enrolled on {voice.enrolled_on}"
    )


def latest_model() -> str:
    """The model folder under results/ that was written last.

    Raises
    ------
    InputError
        There is none.
    """
    found = [path.parent for path in Path("results").rglob("model/hyperparams.yaml")]
    if not found:
        raise InputError(
            "--model: there is none under results/; train one with python "
            "train_speaker.py hparams/conformer.yaml, or name a folder"
        )
    return str(max(found, key=lambda path: path.stat().st_mtime))


def parse(argv: list[str]) -> argparse.Namespace:
    """The command and its options."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--model",
        metavar="MODEL",
        help="a folder that train_speaker.py has written, or any speaker model that "
        "SpeechBrain loads; default: the latest under results/",
    )
    shared.add_argument("--device", default="cpu")
    add_trust(shared)
    shared.add_argument("--json", action="store_true", help="print JSON")
    of_store = argparse.ArgumentParser(add_help=False)
    of_store.add_argument(
        "--voices", metavar="FILE", help="file of voices; default: beside the model"
    )
    with_prior = argparse.ArgumentParser(add_help=False)
    with_prior.add_argument(
        "--prior",
        type=float,
        default=0.5,
        metavar="P",
        help="prior probability that it is the same speaker, or one of those enrolled "
        "(default: 0.5)",
    )
    parser = LineParser(
        prog="speaker.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, function, *parents, example):
        added = commands.add_parser(
            name,
            parents=[shared, *parents],
            help=function.__doc__.rstrip("."),
            description=function.__doc__,
            epilog=f"example: python speaker.py {example}",
            # In other commands, a name may begin with @.
            fromfile_prefix_chars="@" if function is embed else None,
        )
        added.set_defaults(run=function)
        return added.add_argument

    add = command("verify", verify, with_prior, example="verify one.wav two.wav")
    add("one", metavar="A", help="any audio that libsndfile reads")
    add("other", metavar="B")
    add = command("embed", embed, example="embed recordings/ @list.txt -o vectors.npy")
    add("recordings", nargs="+", metavar="FILE", help="or folder, or @LIST")
    add(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help=".npy (the paths go to OUT.txt) or .safetensors (by path)",
    )
    add = command("enroll", enroll, of_store, example="enroll ann mon.wav tue.wav")
    add("name", metavar="NAME")
    add("recordings", nargs="+", metavar="FILE", help="more speech is more reliable")
    add = command(
        "identify",
        identify_recording,
        *(of_store, with_prior),
        example="identify unknown.wav --top 3",
    )
    add("recording", metavar="FILE")
    add("--top", type=int, default=5, metavar="K", help="how many to list")
    command("list", list_voices, of_store, example="list")
    add = command("remove", remove, of_store, example="remove ann")
    add("name", metavar="NAME")
    add = command(
        "serve",
        serve_page,
        *(of_store, with_prior),
        example="serve --port 8000",
    )
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; other machines need a password",
    )
    add("--port", type=int, default=7860, help="0: any free one")
    try:
        options = parser.parse_args(argv)
    except UnicodeDecodeError as error:  # Python 3.12 and later read any name
        lists = ", ".join(word[1:] for word in argv if word.startswith("@"))
        raise InputError(f"{lists}: has a name that is not UTF-8: {error}") from None
    if not 0 < getattr(options, "prior", 0.5) < 1:
        raise InputError(f"--prior {options.prior}: has to be above 0 and below 1")
    if getattr(options, "top", 1) < 1:
        raise InputError(f"--top {options.top}: has to be above 0")
    if not 0 <= getattr(options, "port", 0) < 2**16:
        raise InputError(f"--port {options.port}: has to be from 0 to 65535")
    return options


def load(options: argparse.Namespace) -> "Verifier":
    """The model to use."""
    # Imports create hundreds of thousands of lasting objects, which the collector would
    # scan again and again, for a fifth of the time.
    gc.disable()
    from local_modules.inference.verification import Verifier

    gc.freeze()
    gc.enable()
    verifier = Verifier(options.model, options.device, options.trust)
    if getattr(options, "prior", 0.5) != 0.5 and not verifier.is_calibrated:
        raise InputError(
            f"--prior: {options.model} has no calibration, only the cosine"
        )
    if verifier.warning:
        print(verifier.warning, file=sys.stderr)
    return verifier


def answer(options: argparse.Namespace) -> None:
    """Runs a command and prints its result."""
    # With --voices, they can be listed and removed even if their model is gone.
    needs_model = options.run not in (list_voices, remove)
    # SpeechBrain prints what it loads.
    with contextlib.redirect_stdout(sys.stderr):
        if options.model is None and (needs_model or options.voices is None):
            options.model = latest_model()
            print(f"model  {options.model}")
        verifier = load(options) if needs_model else None
        found, text = options.run(options, verifier)
    print(json.dumps(found) if options.json else text)


def main(argv: list[str]) -> int:
    """Runs the command line.

    Returns
    -------
    int
        Exit status: 0, 1 if nothing could be done, 2 for wrong usage, 130 for Ctrl-C.
    """
    stopped = "The same command continues." if argv[:1] == ["embed"] else ""
    return exit_status("speaker.py", lambda: answer(parse(argv)), stopped)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
