"""All checks, and the state that they examine."""

from collections.abc import Callable, Iterator

from osaurusctl import config_file
from osaurusctl.client import Client
from osaurusctl.doctor import daemon, gpu, hosts, machine, service
from osaurusctl.doctor.check import Check, Context
from osaurusctl.errors import CliError, DaemonNotRunning
from osaurusctl.service import lookup
from osaurusd.wire.paths import Paths

_CHECKS: tuple[Callable[[Context], Iterator[Check]], ...] = (
    machine.check_support,
    daemon.check_configuration,
    service.check_launcher,
    service.check_service_file,
    service.check_job,
    service.check_spawn_type,
    service.check_priority,
    daemon.check_serving,
    daemon.check_drain,
    daemon.check_upgrade,
    daemon.list_versions,
    daemon.check_port,
    daemon.check_access,
    daemon.check_socket,
    daemon.check_open_files,
    hosts.check_ranks,
    machine.check_disk,
    machine.check_memory,
    machine.check_model_folders,
    machine.check_other_stores,
    machine.check_blas,
    machine.check_vision,
    gpu.check_gpu,
    machine.check_hub,
    hosts.check_hosts,
    machine.check_crash_output,
)
"""All checks. The problems of earlier checks can explain those of later ones."""


def run_checks(context: Context) -> list[Check]:
    """Run all checks."""
    return [check for run_check in _CHECKS for check in run_check(context)]


def collect_context(locations: Paths) -> Context:
    """Collect the state that the checks examine. Blocking, and may take seconds."""
    manager = lookup.find_own_or_loaded_service()
    client = Client(locations.socket)
    status, diagnosis, daemon_error = None, None, None
    try:
        status = client.status(any_version=True)
        diagnosis = client.diagnosis() if status.serving else None
    except DaemonNotRunning:
        pass
    except CliError as error:
        daemon_error = str(error)
    try:
        config = config_file.load(locations.config_file)
    except CliError:
        config = None
    return Context(
        paths=locations,
        manager=manager,
        service=manager.status() if manager else None,
        config=config,
        status=status,
        diagnosis=diagnosis,
        daemon_error=daemon_error,
    )
