import pytest

from utils.files import atomic, write_text


def test_a_file_appears_whole_in_a_new_folder(tmp_path):
    with atomic(tmp_path / "new" / "file") as file:
        file.write(b"half")
        assert not (tmp_path / "new" / "file").exists()
        file.write(b" and half")
    assert (tmp_path / "new" / "file").read_bytes() == b"half and half"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path, error):
    write_text(tmp_path / "file", "größer")

    def fail():
        with atomic(tmp_path / "file") as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "file").read_text(encoding="utf-8") == "größer"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
