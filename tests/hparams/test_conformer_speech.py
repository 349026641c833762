"""The recipe for recordings of people: the default one, but for what it says it is."""

from tests.hparams.trees import lines, tree

OWN = {
    "corpus": "folder",
    "data_folder": None,
    "number_of_epochs": 1000,
    "train_time_limit_minutes": 20.0,
    "speaker_speeds": [1.0, 0.9, 1.1],
    "spec_augment": True,
    "dropout": 0.1,
}
DEMO = {"train_speakers", "valid_speakers", "test_speakers", "utterances"}


def test_all_else_is_as_in_the_default_recipe():
    """The files stand side by side; this keeps them so."""
    values = tree("conformer_speech")
    assert {key: values[key] for key in OWN} == OWN
    default, speech = lines("conformer"), lines("conformer_speech")
    assert default.keys() - speech.keys() == DEMO
    assert speech.keys() <= default.keys()
    for key in speech.keys() - OWN.keys() - {"output_folder"}:
        assert speech[key] == default[key], key
