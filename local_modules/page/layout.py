"""The layout of the page: Gradio's components, and what a click does."""

import gradio

from local_modules.page.answers import Answers
from local_modules.page.hearing import MAX_MEGABYTES, MAX_SECONDS
from local_modules.page.uploads import SECONDS_KEPT
from local_modules.plots import BLUE

TITLE = "Who is speaking?"
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
DARK_BLUE = "#005A8E"
# One request at a time: the model uses all cores that it may.
LISTENING = {"concurrency_id": "model", "concurrency_limit": 1}


def theme() -> gradio.Theme:
    """The colours of this project's plots, and fonts of the system."""
    return gradio.themes.Default(primary_hue="blue", **FONTS).set(
        button_primary_background_fill=BLUE,
        button_primary_background_fill_dark=BLUE,
        button_primary_background_fill_hover=DARK_BLUE,
        button_primary_background_fill_hover_dark=DARK_BLUE,
    )


def build(answers: Answers, model_name: str) -> gradio.Blocks:
    """The page.

    Arguments
    ---------
    answers : Answers
        What answers the requests.
    model_name : str
        The model's name.

    Returns
    -------
    gradio.Blocks
    """
    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        last = gradio.State()
        gradio.Markdown(f"# {TITLE}")
        if answers.verifier.warning:
            gradio.HTML(answers.parts.warnings([answers.verifier.warning]))
        with gradio.Tab("Compare"):
            with gradio.Row():
                one = recorder("First recording", "one")
                other = recorder("Second recording", "other")
            compare = gradio.Button("Is it the same person?", variant="primary")
            verdict = gradio.HTML(elem_id="verdict")
        with gradio.Tab("People"), gradio.Row():
            with gradio.Column():
                recording = recorder("Recording", "recording")
                identify = gradio.Button("Who is it?", variant="primary")
                answer = gradio.HTML()
            with gradio.Column():
                with gradio.Group():
                    name = gradio.Textbox(label="Name", max_lines=1)
                    consent = gradio.Checkbox(
                        label="This person agrees that their voice is stored"
                    )
                enrol = gradio.Button("Enrol this recording")
                change = gradio.HTML()
                gradio.Markdown("### Enrolled")
                people = gradio.HTML(elem_id="people")
                leaving = gradio.Dropdown(label="Person to remove", choices=[])
                remove = gradio.Button("Remove", variant="stop")
        with gradio.Tab("Map"):
            gradio.Markdown(
                "Each dot is a recording of an enrolled person, the star the last "
                "recording. Near ones sound alike, as far as two dimensions can show."
            )
            voices = gradio.HTML()
        gradio.HTML(
            answers.parts.footnote(
                f"WAV, FLAC, OGG or MP3, up to {MAX_SECONDS} s and {MAX_MEGABYTES} MB. "
                f"Recordings stay on the machine that serves this page and are deleted "
                f"after {SECONDS_KEPT // 60} minutes; of people enrolled, "
                f"embeddings are kept, with the name, the date, and the duration and "
                f"level of each recording. Model {model_name}."
            )
        )

        def refreshed(last):
            return (
                answers.people(),
                gradio.Dropdown(choices=answers.names(), value=None),
                answers.map(last),
            )

        def enrolled(path, name, consent):
            html, voice = answers.enrol(path, name, consent)
            if voice is not None:
                name, consent = "", False  # the next person has not agreed yet
            return html, voice, name, consent

        shown = {"inputs": last, "outputs": [people, leaving, voices]}
        page.load(refreshed, **shown)
        compare.click(answers.compare, [one, other], [verdict, last], **LISTENING).then(
            refreshed, **shown
        )
        identify.click(answers.identify, recording, [answer, last], **LISTENING).then(
            refreshed, **shown
        )
        enrol.click(
            enrolled,
            [recording, name, consent],
            [change, last, name, consent],
            **LISTENING,
        ).then(refreshed, **shown)
        remove.click(answers.remove, leaving, [change, last]).then(refreshed, **shown)
    return page


def recorder(label: str, elem_id: str) -> gradio.Audio:
    """A component to record or upload audio."""
    return gradio.Audio(
        label=label,
        elem_id=elem_id,
        sources=["microphone", "upload"],
        type="filepath",
        buttons=[],
        waveform_options={"waveform_color": "#999999", "waveform_progress_color": BLUE},
    )
