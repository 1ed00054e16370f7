"""All checks, in an order in which what comes first explains what comes later."""

from collections.abc import Callable, Iterator

from osaurusctl import config_file
from osaurusctl.client import Client
from osaurusctl.doctor import daemon, machine
from osaurusctl.doctor import service as service_checks
from osaurusctl.doctor.check import Check, Patient
from osaurusctl.errors import CliError, DaemonNotRunning
from osaurusctl.service import service
from osaurusd.wire.paths import Paths


def examine(paths: Paths) -> list[Check]:
    """Every check that applies here."""
    patient = _patient(paths)
    return [check for look in _CHECKS for check in look(patient)]


def _patient(paths: Paths) -> Patient:
    found = service.found()
    manager = found if found is not None and service.is_for(found) else None
    client = Client(paths.socket)
    status, diagnosis, unanswered = None, None, None
    try:
        status = client.status(any_version=True)
        diagnosis = client.diagnosis() if status.serving else None
    except DaemonNotRunning:
        pass
    except CliError as error:
        unanswered = str(error)
    try:
        config = config_file.load(paths.config_file)
    except CliError:
        config = None
    return Patient(
        paths=paths,
        manager=manager,
        facts=manager.facts() if manager else None,
        config=config,
        status=status,
        diagnosis=diagnosis,
        unanswered=unanswered,
    )


_CHECKS: tuple[Callable[[Patient], Iterator[Check]], ...] = (
    daemon.configuration,
    service_checks.launcher_runs,
    service_checks.service_file,
    service_checks.job_state,
    service_checks.spawn_type,
    service_checks.priority,
    daemon.daemon_serves,
    daemon.upgrade,
    daemon.versions,
    daemon.port,
    daemon.exposure,
    daemon.socket_permissions,
    daemon.open_files,
    machine.disk,
    machine.memory,
    machine.stores,
    machine.blas,
    machine.hub,
    machine.crashes,
)
