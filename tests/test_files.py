"""Output files: whole or not at all, only ever in the place of a file, and with the permissions that it had."""

import os
import stat

import pytest

from mixflow.files.atomic import check_writable, replace_file


def write(path, text="new"):
    with replace_file(path) as temporary:
        temporary.write_text(text)


@pytest.fixture
def folder(tmp_path):
    """The only folder that these tests write to; nothing but what they name may be left in it."""
    (tmp_path / "old").write_text("old")
    return tmp_path


def test_a_failed_write_leaves_the_old_file_and_nothing_else(folder):
    def fail(temporary):
        temporary.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), replace_file(folder / "old") as temporary:
        fail(temporary)
    assert (folder / "old").read_text() == "old"
    assert [entry.name for entry in folder.iterdir()] == ["old"]


@pytest.mark.parametrize("use", [write, check_writable])
def test_only_files_are_replaced(folder, use):
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=f"{name}: expected a file, got a device, a pipe or a socket"):
            use(folder / name)
    with pytest.raises(IsADirectoryError, match="expected a file, got a directory"):
        use(folder)
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)
    assert sorted(entry.name for entry in folder.iterdir()) == ["link", "old", "pipe"]


def test_a_link_is_written_through(folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "file").write_text("old")
    for name, target in (("link", "elsewhere/file"), ("dangling", "elsewhere/none")):
        (folder / name).symlink_to(target)
        check_writable(folder / name)
        write(folder / name)
        assert (folder / name).is_symlink()
        assert (folder / target).read_text() == "new"
    assert sorted(entry.name for entry in (folder / "elsewhere").iterdir()) == ["file", "none"]
    (folder / "round").symlink_to("round")
    with pytest.raises(OSError, match="round"):
        write(folder / "round")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_the_old_permissions_are_kept(folder, mode):
    path = folder / "old"
    path.chmod(mode)
    with replace_file(path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) & ~mode == 0, "more open than the file it replaces"
        temporary.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_the_usual_permissions(folder):
    write(folder / "new")
    (folder / "usual").touch()
    assert (folder / "new").stat().st_mode == (folder / "usual").stat().st_mode


def test_every_name_that_a_file_can_have_can_be_written(folder):
    for length in (1, 240, 246, 255):
        check_writable(folder / ("n" * length))
        write(folder / ("n" * length))
    with pytest.raises(OSError, match="name too long"):
        write(folder / ("n" * 256))
    assert len(list(folder.iterdir())) == 5
