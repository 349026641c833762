"""What a person reads of a mistake."""

import pytest

from local_modules.errors import InputError


def message(function, *args):
    """The one line that a person reads."""
    with pytest.raises(InputError) as error:
        function(*args)
    text = str(error.value)
    assert text and "\n" not in text
    assert error.value.exit_status == 2
    return text
