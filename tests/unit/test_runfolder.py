"""The folder of a run: what it may hold, and what its description must say."""

import pytest

from mlff.errors import InputError
from mlff.runfolder import RUN, claimed, read_run, write_json

OUTPUTS = ("last.safetensors", "log.csv")
OF_FIT = ("config", "split.hash", "versions")
WHOLE = {"config": {"seed": 0}, "versions": {"mlff": "0"}, "split": {"hash": "ab"}}


def test_a_description_is_given_back_as_it_was_written(tmp_path):
    assert read_run(tmp_path, OUTPUTS, resume=True) is None
    write_json(tmp_path / RUN, WHOLE)
    assert read_run(tmp_path, OUTPUTS, resume=True) == WHOLE
    assert read_run(tmp_path, OUTPUTS, True, OF_FIT) == WHOLE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"[]", "must hold a JSON object, got list"),
        (b"null", "must hold a JSON object, got NoneType"),
        (b"{}", "is damaged: `config` is missing"),
        (b'{"config": 3, "versions": {}}', "is damaged: `config` is missing"),
        (b'{"config": {}}', "is damaged: `versions` is missing"),
    ],
)
def test_a_damaged_description_is_an_error_that_names_the_file(
    tmp_path, content, message
):
    (tmp_path / RUN).write_bytes(content)
    with pytest.raises(InputError, match=message) as told:
        read_run(tmp_path, OUTPUTS, resume=True)
    assert str(tmp_path / RUN) in str(told.value)
    assert "choose another folder" in str(told.value)


def test_a_folder_in_the_place_of_the_description_is_an_error(tmp_path):
    (tmp_path / RUN).mkdir()
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_run(tmp_path, OUTPUTS, resume=True)


@pytest.mark.parametrize("split", [None, 3, {}, {"indices": []}])
def test_a_caller_says_what_must_be_inside_a_table(tmp_path, split):
    write_json(tmp_path / RUN, {**WHOLE, "split": split})
    assert read_run(tmp_path, OUTPUTS, resume=True) is not None
    with pytest.raises(InputError, match=r"damaged: `split\.hash` is missing"):
        read_run(tmp_path, OUTPUTS, True, OF_FIT)


def test_a_run_where_none_may_be_and_files_of_something_else_are_errors(tmp_path):
    (tmp_path / "log.csv").touch()
    with pytest.raises(InputError, match=r"\['log\.csv'\] of something else"):
        read_run(tmp_path, OUTPUTS, resume=True)
    write_json(tmp_path / RUN, WHOLE)
    with pytest.raises(InputError, match="or resume it"):
        read_run(tmp_path, OUTPUTS, resume=False)


def test_a_folder_is_for_one_process_at_a_time(tmp_path):
    with (
        claimed(tmp_path / "run", OUTPUTS),
        pytest.raises(InputError, match="in use by another run"),
        claimed(tmp_path / "run", OUTPUTS),
    ):
        pass
    with claimed(tmp_path / "run", OUTPUTS):
        pass
