"""Files in trace_dir: made for their owner alone, and opened only if nobody else can have put them there."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celery_trace import private_files
from celery_trace.private_files import NotOurs

#: A user that is neither root nor the one that runs the tests.
STRANGER = 54_321


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def read(path: Path) -> bytes:
    return private_files.read(path)


def append(path: Path) -> bytes:
    fd = private_files.open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, b"more")
    finally:
        os.close(fd)
    return b""


def truncate(path: Path) -> bytes:
    os.close(private_files.open_file(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    return b""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"ours")
    path.chmod(0o600)
    return path


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("elsewhere"))


def a_second_name(path: Path) -> None:
    os.link(path, path.with_name("elsewhere"))


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def writable_by_the_group(path: Path) -> None:
    path.chmod(0o660)


def writable_by_all(path: Path) -> None:
    path.chmod(0o602)


TRICKS = (
    a_link, a_link_to_nothing, a_second_name, a_pipe, a_socket, a_folder, writable_by_the_group, writable_by_all
)  # fmt: skip


@pytest.mark.timeout(10)  # a pipe that is waited for would hang
@pytest.mark.parametrize("use", [read, append, truncate])
@pytest.mark.parametrize("trick", TRICKS)
def test_what_somebody_else_can_have_put_there_is_refused_and_left_as_it_is(
    file: Path, trick: Callable[[Path], None], use: Callable[[Path], bytes]
) -> None:
    trick(file)
    with pytest.raises(NotOurs) as refused:
        use(file)
    assert str(file) in str(refused.value)
    assert refused.value.next
    elsewhere = file.with_name("elsewhere")
    assert not elsewhere.exists() or elsewhere.read_bytes() == b"ours"
    assert elsewhere.exists() == (trick in (a_link, a_second_name))


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o644])
def test_what_only_its_owner_can_change_is_read(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert read(file) == b"ours"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_secret_that_others_can_read_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(NotOurs, match="others"):
        private_files.read(file, secret=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root can give a file to another user.")
@pytest.mark.parametrize("use", [read, append, truncate])
def test_a_file_of_another_user_is_refused(file: Path, use: Callable[[Path], bytes]) -> None:
    os.chown(file, STRANGER, -1)
    with pytest.raises(NotOurs, match=f"belongs to uid {STRANGER}"):
        use(file)
    assert file.read_bytes() == b"ours"


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root can give a file to another user.")
def test_root_reads_what_belongs_to_the_owner_of_the_folder_but_takes_no_secret_from_it(file: Path) -> None:
    for path in (file.parent, file):
        os.chown(path, STRANGER, -1)
    assert read(file) == b"ours"
    with pytest.raises(NotOurs, match=f"belongs to uid {STRANGER}"):
        private_files.read(file, secret=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root can become another user.")
def test_another_user_takes_what_root_made_and_nothing_of_a_third(file: Path) -> None:
    file.chmod(0o644)
    file.parent.chmod(0o755)
    third = file.with_name("third")
    third.write_bytes(b"third")
    os.chown(third, STRANGER + 1, -1)
    # The names above are pytest's own and closed to others, so the child stands in the folder.
    child = os.fork()
    if child == 0:
        verdict = 1
        try:
            os.chdir(file.parent)
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            assert private_files.read(Path(file.name)) == b"ours"
            try:
                private_files.read(Path(third.name))
            except NotOurs:
                verdict = 0
        finally:
            os._exit(verdict)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_each_level_of_a_folder_that_is_made_is_private(tmp_path: Path, open_umask: None) -> None:
    folder = tmp_path / "a" / "b" / "trace"
    private_files.make_part(folder / "spool")
    for level in (tmp_path / "a", tmp_path / "a" / "b", folder, folder / "spool"):
        assert mode_of(level) == 0o700


def test_a_folder_that_exists_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    folder.mkdir()
    folder.chmod(0o750)
    private_files.make_part(folder / "spool")
    assert mode_of(folder) == 0o750
    assert [path.name for path in folder.iterdir()] == ["spool"]


def test_a_new_trace_dir_keeps_itself_out_of_a_repository(tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    private_files.make_part(folder / "spool")
    assert "*" in (folder / ".gitignore").read_text().splitlines()
    assert not (folder / "spool" / ".gitignore").exists()
    (folder / ".gitignore").unlink()
    private_files.make_part(folder / "spool")
    assert not (folder / ".gitignore").exists(), "who removed it meant it"


@pytest.mark.parametrize("stands", ["file", "link to nothing"])
def test_where_something_else_stands_no_folder_is_made(tmp_path: Path, stands: str) -> None:
    folder = tmp_path / "trace"
    if stands == "file":
        folder.write_bytes(b"")
    else:
        folder.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"not a folder|Not a directory"):
        private_files.make_part(folder / "spool")


def test_a_trace_dir_behind_a_link_is_the_owners_choice(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    (tmp_path / "trace").symlink_to(real)
    private_files.make_part(tmp_path / "trace" / "spool")
    assert (real / "spool").is_dir()


def test_what_replaces_a_file_is_whole_private_and_follows_no_link(file: Path, open_umask: None) -> None:
    a_link(file)
    private_files.replace(file, b"new")
    assert not file.is_symlink()
    assert (file.read_bytes(), mode_of(file)) == (b"new", 0o600)
    assert file.with_name("elsewhere").read_bytes() == b"ours"
    assert {path.name for path in file.parent.iterdir()} == {"file", "elsewhere"}


def test_a_draft_that_somebody_laid_out_beforehand_is_not_written_through(file: Path) -> None:
    victim = file.with_name("victim")
    victim.write_bytes(b"precious")
    for thread in range(os.getpid() - 2, os.getpid() + 3):
        file.with_name(f"file.{os.getpid()}-{thread}.draft").symlink_to(victim)
    private_files.replace(file, b"new")
    assert victim.read_bytes() == b"precious"
    assert file.read_bytes() == b"new"


def test_a_file_that_can_not_be_replaced_stays_and_leaves_no_draft(file: Path) -> None:
    a_folder(file)
    (file / "full").write_bytes(b"")
    with pytest.raises(OSError, match=r"directory|folder"):
        private_files.replace(file, b"new")
    assert [path.name for path in file.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("trick", [a_link, a_link_to_nothing, a_second_name, a_pipe])
def test_a_new_file_is_new_whatever_stood_there(file: Path, trick: Callable[[Path], None], open_umask: None) -> None:
    trick(file)
    os.close(private_files.create(file))
    assert stat.S_ISREG(file.lstat().st_mode)
    assert (file.stat().st_size, mode_of(file), file.stat().st_nlink) == (0, 0o600, 1)
    elsewhere = file.with_name("elsewhere")
    assert not elsewhere.exists() or elsewhere.read_bytes() == b"ours"


def test_what_is_set_aside_goes_to_nobodys_place(file: Path) -> None:
    first = private_files.set_aside(file)
    file.write_bytes(b"again")
    second = private_files.set_aside(file)
    assert (first.read_bytes(), second.read_bytes()) == (b"ours", b"again")
    assert not file.exists()


@pytest.mark.parametrize(
    ("mode", "guarded"), [(0o700, True), (0o755, True), (0o1777, True), (0o777, False), (0o770, False)]
)
def test_a_folder_is_guarded_where_nobody_else_can_replace_what_stands_in_it(
    tmp_path: Path, mode: int, guarded: bool
) -> None:
    tmp_path.chmod(mode)
    if guarded:
        private_files.check_guarded(tmp_path)
    else:
        with pytest.raises(NotOurs, match="chmod 700"):
            private_files.check_guarded(tmp_path)


def test_an_export_into_a_file_of_ones_own_closes_it_to_others(file: Path) -> None:
    file.chmod(0o644)
    os.close(private_files.open_output(file))
    assert (file.read_bytes(), mode_of(file)) == (b"", 0o600)


def test_an_export_goes_where_the_person_said_also_through_a_link(file: Path) -> None:
    a_link(file)
    os.close(private_files.open_output(file))
    assert file.is_symlink()
    assert file.with_name("elsewhere").read_bytes() == b""


def test_what_a_kill_left_half_made_is_cleared_once_it_is_old(tmp_path: Path) -> None:
    for name in ("p1.7.nascent", "p1.7.box-nascent", "7-7.probe", "collector.json.7-7.draft", "p1.lock", "my.draft"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / "p2.8.nascent").touch()
    (tmp_path / "abc.1-1.draft").mkdir()
    private_files.clear_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["abc.1-1.draft", "my.draft", "p1.lock", "p2.8.nascent"]
    private_files.clear_drafts(tmp_path / "nowhere")
