"""Install and uninstall the service, as lists of steps that can be previewed and rolled back."""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from osaurusctl import process
from osaurusctl.client import Client
from osaurusctl.errors import CliError
from osaurusctl.service import control, launcher, lookup
from osaurusctl.service.job import Job, Mode, launcher_path
from osaurusctl.service.manager import ServiceManager, Step
from osaurusd import __version__
from osaurusd.wire.admin import DaemonStatus
from osaurusd.wire.files import read_file, replace_file
from osaurusd.wire.paths import Paths


@dataclass(frozen=True)
class InstallPlan:
    """What an installation will do.

    `changed` is false if the service file stays the same. `previous_file` and `previous_launcher` are for a rollback;
    `previous_instance` is the daemon that will be replaced.
    """

    manager: ServiceManager
    content: bytes
    steps: list[Step]
    changed: bool
    launcher: Path
    previous_file: bytes | None
    previous_launcher: bytes | None
    previous_instance: str | None


def build_job(
    paths: Paths, mode: Mode, env: dict[str, str], *, host: str | None, port: int | None, insecure: bool
) -> Job:
    return Job(
        launcher=launcher_path(paths),
        user_home=Path.home(),
        log_dir=paths.log_dir,
        host=host,
        port=port,
        insecure=insecure,
        env=env,
        mode=mode,
        user=lookup.user_name() if mode is Mode.SYSTEM else None,
    )


def plan_installation(manager: ServiceManager, job: Job, paths: Paths) -> InstallPlan:
    """Compute the steps from the current state, without changing anything.

    Raises:
        CliError: a service with another home or mode is installed, or the service file would be invalid.
    """
    _check_no_conflict(manager)
    content = manager.render(job)
    previous_file = read_file(manager.file)
    service, daemon = manager.status(), control.read_daemon_status(Client(paths.socket))
    steps = [Step(f"create {job.log_dir}", lambda: job.log_dir.mkdir(mode=0o700, parents=True, exist_ok=True))]
    launcher_is_current = launcher.is_current(job.launcher)
    if not launcher_is_current:
        steps.append(Step(f"write the launcher {job.launcher}", lambda: launcher.write(job.launcher)))
    up_to_date = daemon is not None and daemon.version == __version__
    changed = previous_file != content or not service.running or service.enabled is False or len(service.drift) > 0
    if changed:
        steps += [manager.unload_step()] if service.loaded else []
        steps += [manager.write_step(content), manager.load_step()]
    else:
        must_restart = not launcher_is_current or (daemon is not None and not up_to_date)
        steps.append(manager.restart_step() if must_restart else manager.start_step())
    if daemon is not None and daemon.pid != service.pid:
        # Last: the service waits until the home is free, and until then a failure leaves the other daemon running.
        steps.append(_replace_daemon_step(daemon, paths))
    keeps_instance = not changed and launcher_is_current and up_to_date
    return InstallPlan(
        manager=manager,
        content=content,
        steps=steps,
        changed=changed,
        launcher=job.launcher,
        previous_file=previous_file,
        previous_launcher=read_file(job.launcher),
        previous_instance=None if keeps_instance or daemon is None else daemon.instance,
    )


def execute(plan: InstallPlan, client: Client, timeout: float, report_step: Callable[[str], None]) -> DaemonStatus:
    """Run the steps and wait until the new service is ready; roll back if it does not become ready.

    Raises:
        CliError: the installation failed; the message has the cause and the result of the rollback.
    """
    try:
        for step in plan.steps:
            report_step(step.text)
            step.run()
        return control.wait_until_ready(plan.manager, client, timeout, previous_instance=plan.previous_instance)
    except (CliError, OSError, KeyboardInterrupt) as error:
        if not plan.changed:
            raise
        if isinstance(error, KeyboardInterrupt):
            _roll_back(plan)
            raise
        if plan.previous_file is None and _is_waiting(plan.manager, client):
            outcome = "the service stays installed, and recovers automatically once this is fixed"
        else:
            outcome = _roll_back(plan)
        raise _add_outcome(error, outcome) from error


def uninstall_steps(manager: ServiceManager, paths: Paths) -> list[Step]:
    launcher_file = launcher_path(paths)
    with contextlib.suppress(CliError):
        if (job := manager.installed_job()) is not None:
            launcher_file = job.launcher
    return [
        manager.unload_step(),
        manager.write_step(None),
        Step(f"remove the launcher {launcher_file}", lambda: launcher.remove(launcher_file)),
    ]


def purge_paths(paths: Paths) -> list[Path]:
    """Return what a purge removes. It keeps the Hugging Face cache, which other programs use too."""
    candidates = [paths.config_file, paths.state_dir, paths.models_dir, paths.log_dir, paths.run_dir]
    return [path for path in candidates if path.exists() or path.is_symlink()]


def purge(paths: Paths) -> None:
    for path in purge_paths(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _check_no_conflict(manager: ServiceManager) -> None:
    installed = lookup.find_installed()
    if installed is None:
        return
    if not lookup.uses_this_home(installed):
        raise lookup.other_home_error(installed)
    if installed.mode is not manager.mode:
        raise CliError(
            f"a {installed.mode} service is already installed for this home",
            hint='run "osaurusctl uninstall" to remove it first',
            code="other_mode",
        )


def _replace_daemon_step(daemon: DaemonStatus, paths: Paths) -> Step:
    def stop_daemon() -> None:
        with contextlib.suppress(CliError):
            Client(paths.socket).shutdown()
        process.wait_until_stopped(paths.lock, process.STOP_TIMEOUT_SECONDS, pid=daemon.pid)

    return Step(f"stop the running osaurusd (pid {daemon.pid}); wait until it has exited", stop_daemon)


def _roll_back(plan: InstallPlan) -> str:
    """Restore the previous service, and return a description of the outcome."""
    manager = plan.manager
    try:
        manager.unload_step().run()
        manager.write_step(plan.previous_file).run()
        if plan.previous_launcher is not None:
            replace_file(plan.launcher, plan.previous_launcher, 0o755)
        elif plan.previous_file is None:
            launcher.remove(plan.launcher)
        if plan.previous_file is None:
            return "the installation was rolled back"
        manager.load_step().run()
    except (CliError, OSError) as error:
        return f"the previous service could not be restored: {error}"
    return "the previous service was restored"


def _is_waiting(manager: ServiceManager, client: Client) -> bool:
    """Whether the new service runs and only waits for a prerequisite, such as a port that is in use."""
    service, daemon = manager.status(), control.read_daemon_status(client)
    return service.pid is not None and daemon is not None and daemon.pid == service.pid


def _add_outcome(error: CliError | OSError, outcome: str) -> CliError:
    if isinstance(error, CliError):
        return CliError(
            f"{error}\n{outcome}", hint=error.hint, exit_code=error.exit_code, code=error.body.code or "failure"
        )
    return CliError(f"{error.filename or os.curdir}: {error.strerror}\n{outcome}", code="install_failed")
