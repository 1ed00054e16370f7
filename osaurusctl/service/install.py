"""Installing and removing the service: a list of steps, so that they can be shown before, and undone halfway."""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from osaurusctl import process
from osaurusctl.client import Client
from osaurusctl.errors import CliError
from osaurusctl.service import files, launcher, ready, service
from osaurusctl.service.job import Job, Mode, launcher_path
from osaurusctl.service.manager import Manager, Step
from osaurusd import __version__
from osaurusd.config import SHUTDOWN_GRACE_SECONDS
from osaurusd.wire.admin import DaemonStatus
from osaurusd.wire.paths import Paths

_HAND_OVER_SECONDS = SHUTDOWN_GRACE_SECONDS + 10


@dataclass(frozen=True)
class Plan:
    """What an installation would do.

    `before` are the file and launcher that are there now; `changed` says whether the file will be another one.
    """

    manager: Manager
    content: bytes
    steps: list[Step]
    before: bytes | None
    launcher_before: bytes | None
    launcher: Path
    changed: bool
    instance: str | None


def job_for(
    paths: Paths, mode: Mode, env: dict[str, str], *, host: str | None, port: int | None, insecure: bool
) -> Job:
    """The job of this environment."""
    return Job(
        launcher=launcher_path(paths),
        user_home=Path.home(),
        log_dir=paths.log_dir,
        host=host,
        port=port,
        insecure=insecure,
        env=env,
        mode=mode,
        user=service.user_name() if mode is Mode.SYSTEM else None,
    )


def plan(manager: Manager, job: Job, paths: Paths) -> Plan:
    """Decide what to do, from how things are now; changes nothing.

    Raises:
        CliError: the service is another home's or mode's, or the file would be wrong.
    """
    _refuse_other(manager)
    content = manager.content(job)
    before = files.read(manager.file)
    facts, status = manager.facts(), ready.daemon_status(Client(paths.socket))
    stranger = status if status is not None and status.pid != facts.pid else None
    steps = [Step(f"create {job.log_dir}", lambda: _make_private(job.log_dir))]
    fresh = launcher.is_current(job.launcher)
    if not fresh:
        steps.append(Step(f"write the launcher {job.launcher}", lambda: launcher.write(job.launcher)))
    unchanged = before == content and facts.running and facts.enabled is not False and not facts.drift
    if unchanged:
        must_restart = not fresh or (status is not None and status.version != __version__)
        steps.append(manager.restarting() if must_restart else manager.starting())
    else:
        steps += [manager.unloading()] if facts.loaded else []
        steps += [manager.writing(content), manager.loading()]
    if stranger is not None:
        # Last: the service waits for the home, and a failure up to here leaves that daemon as it is.
        steps.append(_handing_over(stranger, paths))
    stays = unchanged and fresh and status is not None and status.version == __version__
    return Plan(
        manager=manager,
        content=content,
        steps=steps,
        before=before,
        launcher_before=files.read(job.launcher),
        launcher=job.launcher,
        changed=not unchanged,
        instance=None if stays or status is None else status.instance,
    )


def carry_out(plan: Plan, client: Client, timeout: float, say: Callable[[str], None]) -> DaemonStatus:
    """Do the steps, and wait until the new service serves; if it does not, the one before is put back.

    Raises:
        CliError: it failed; the message has the cause and what was restored.
    """
    try:
        for step in plan.steps:
            say(step.text)
            step.act()
        return ready.await_ready(plan.manager, client, timeout, not_instance=plan.instance)
    except (CliError, OSError, KeyboardInterrupt) as error:
        if not plan.changed:
            raise
        if isinstance(error, KeyboardInterrupt):
            _undo(plan)
            raise
        if plan.before is None and _is_mendable(plan.manager, client):
            raise _with(error, "it stays installed, and goes on by itself once that is mended") from error
        raise _with(error, _undo(plan)) from error


def removing(manager: Manager, paths: Paths) -> list[Step]:
    """The steps of an uninstallation."""
    launcher_file = launcher_path(paths)
    with contextlib.suppress(CliError):
        if (job := manager.recorded()) is not None:
            launcher_file = job.launcher
    return [
        manager.unloading(),
        manager.writing(None),
        Step(f"remove the launcher {launcher_file}", lambda: launcher.remove(launcher_file)),
    ]


def purged(paths: Paths) -> list[Path]:
    """What a purge removes: models brought in, settings, state and logs; the Hugging Face cache is other tools' too."""
    places = [paths.config_file, paths.state_dir, paths.models_dir, paths.log_dir, paths.run_dir]
    return [place for place in places if place.exists() or place.is_symlink()]


def purge(paths: Paths) -> None:
    for place in purged(paths):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def _refuse_other(manager: Manager) -> None:
    there = service.installed()
    if there is None:
        return
    if not service.is_for(there):
        raise service.other_home(there)
    if there.mode is not manager.mode:
        raise CliError(
            f"it is installed as a {there.mode} service, and two would fight over the home",
            hint="`osaurusctl uninstall` removes that one",
            code="other_mode",
        )


def _handing_over(daemon: DaemonStatus, paths: Paths) -> Step:
    def act() -> None:
        with contextlib.suppress(CliError):
            Client(paths.socket).shutdown()
        process.wait_until_gone(paths.lock, _HAND_OVER_SECONDS, only=daemon.pid)

    return Step(f"stop the osaurusd that runs now (pid {daemon.pid}), and wait until it is gone", act)


def _make_private(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def _undo(plan: Plan) -> str:
    """Put back what was there before, and tell how that went."""
    manager = plan.manager
    try:
        manager.unloading().act()
        manager.writing(plan.before).act()
        if plan.launcher_before is not None:
            files.replace(plan.launcher, plan.launcher_before, 0o755)
        elif plan.before is None:
            launcher.remove(plan.launcher)
        if plan.before is None:
            return "nothing was left installed"
        manager.loading().act()
    except (CliError, OSError) as error:
        return f"the service before could not be restored: {error}"
    return "the service before was restored and loaded"


def _is_mendable(manager: Manager, client: Client) -> bool:
    """Whether the new service runs and only waits, as for a port that somebody holds."""
    facts, status = manager.facts(), ready.daemon_status(client)
    return facts.pid is not None and status is not None and status.pid == facts.pid


def _with(error: CliError | OSError, more: str) -> CliError:
    if isinstance(error, CliError):
        return CliError(
            f"{error}\n{more}", hint=error.hint, exit_code=error.exit_code, code=error.body.code or "failure"
        )
    return CliError(f"{error.filename or os.curdir}: {error.strerror}\n{more}", code="install_failed")
