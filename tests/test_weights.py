"""The models that come with the package: whole, small, and with a card that says what they were trained on."""

from nnssl_reg.commands.found_models import packaged_models
from nnssl_reg.pretraining.shared_model import load_shared_model


def test_models_that_come_with_the_package_are_whole_small_and_say_what_they_are_and_may():
    for folder in packaged_models():
        card = load_shared_model(folder, "cpu")[2]
        assert (folder / "encoder.safetensors").stat().st_size <= 10e6, folder
        assert card.notes and all(source.licence != "not stated" for source in card.data), folder
