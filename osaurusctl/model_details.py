"""What `osaurusctl show` prints about a model."""

import time

from osaurusctl.formatting import format_duration, format_table, labeled_rows
from osaurusd.wire.admin import ModelDetails, ModelInfo, WorkerInfo
from osaurusd.wire.lineage import ImportRecord, Lineage
from osaurusd.wire.placement import PlacementInfo
from osaurusd.wire.quantization import StoredMatrices
from osaurusd.wire.residency import LoadPhases
from osaurusd.wire.sizes import format_bytes, format_count

Rows = list[tuple[str, str]]


def format_age(model: ModelInfo) -> str:
    return f"{format_duration(max(0.0, time.time() - model.created))} ago"


def format_details(details: ModelDetails) -> str:
    """Return everything about a model, in sections."""
    worker = details.model.worker
    sections = [
        ("", _identity_rows(details)),
        ("model", _model_detail_rows(details)),
        ("quantized from", _lineage_rows(details.lineage) if details.lineage else []),
        ("imported from", _import_rows(details.imported) if details.imported else []),
        ("generation defaults", _generation_rows(details) if details.model.task == "generate" else []),
        ("memory", _memory_rows(details)),
        ("hosts", _placement_rows(details.placement) if details.placement else []),
        ("worker", _worker_rows(worker) if worker else []),
        ("files", [(file.name, format_bytes(file.bytes)) for file in details.files]),
    ]
    return "\n\n".join(_format_section(title, rows) for title, rows in sections if rows)


def _placement_rows(placement: PlacementInfo) -> Rows:
    """Return where a model runs, and each of its ranks once it has been loaded."""
    rows = [("hosts", ", ".join(["this host", *placement.hosts])), ("split", placement.split)]
    if placement.reason:
        rows.append(("reason", placement.reason))
    for number, rank in enumerate(placement.ranks):
        layers = f", layers {rank.layers[0]} to {rank.layers[1]}" if rank.layers else ""
        rows.append((f"rank {number}", f"{rank.host or 'this host'}, {format_bytes(rank.needs_bytes)}{layers}"))
    return rows


def _format_section(title: str, rows: Rows) -> str:
    if not title:
        return format_table(rows)
    return "\n".join([title, *(f"  {line}" for line in format_table(rows).splitlines())])


def _identity_rows(details: ModelDetails) -> Rows:
    model = details.model
    return [
        ("name", model.name),
        *labeled_rows("aliases", model.aliases),
        ("repo", model.repo),
        ("commit", details.commit or "-"),
        ("license", details.license or "-"),
        ("state", f"{model.state}: {model.reason}" if model.reason else model.state),
        ("modified", format_age(model)),
        ("size on disk", format_bytes(model.bytes)),
        ("path", model.path),
    ]


def _model_detail_rows(details: ModelDetails) -> Rows:
    model = details.model
    return [
        ("task", model.task),
        ("architecture", model.architecture or "-"),
        ("quantization", model.quantization or "-"),
        ("parameters", format_count(model.parameters) if model.parameters else "-"),
        ("context length", f"{model.context_length} tokens" if model.context_length else "-"),
        *(_ability_rows(details) if model.task == "generate" else []),
    ]


def _ability_rows(details: ModelDetails) -> Rows:
    return [
        ("tools", _yes_no(details.tools)),
        ("reasoning", _yes_no(details.reasoning)),
        ("vision", f"no: {refusal}" if (refusal := details.model.vision_refusal) else _yes_no(details.vision)),
    ]


def _lineage_rows(lineage: Lineage) -> Rows:
    return [
        ("base model", lineage.base),
        *([("base commit", lineage.base_commit)] if lineage.base_commit else []),
        ("format", f"{lineage.mode}, {lineage.bits} bits, group size {lineage.group_size}"),
        ("bits per weight", f"{lineage.bits_per_weight:.2f}"),
        ("mean relative error", f"{lineage.mean_error:.2%}"),
        ("largest error", f"{lineage.worst_error:.2%} ({lineage.worst_tensor})"),
    ]


def _import_rows(record: ImportRecord) -> Rows:
    report = record.quantization
    errors = report is not None and report.worst_tensor is not None
    return [
        ("source", record.source),
        *([("program", record.program)] if record.program else []),
        *([("sha256", record.sha256)] if record.sha256 else []),
        ("imported", f"{format_duration(max(0.0, time.time() - record.imported_at))} ago"),
        *(labeled_rows("notes", record.notes) if record.notes else []),
        *([("quantize", record.quantize)] if record.quantize else []),
        *((group.type, _describe_matrices(group)) for group in (report.matrices if report else [])),
        *([("largest error", f"{report.worst_error:.2%} ({report.worst_tensor})")] if report and errors else []),
    ]


def _describe_matrices(group: StoredMatrices) -> str:
    stored = f"{group.count} {'matrix' if group.count == 1 else 'matrices'}, stored as {group.stored}"
    if group.error is None:
        return stored
    if group.error == 0 and group.held:
        return f"{stored}: exact"
    change = "only scales rounded" if group.held else "requantized"
    return f"{stored}: {change}, mean relative error {group.error:.2%}"


def _generation_rows(details: ModelDetails) -> Rows:
    values = {"temperature": details.temperature, "top_p": details.top_p}
    return [(name, "-" if value is None else f"{value:g}") for name, value in values.items()]


def _memory_rows(details: ModelDetails) -> Rows:
    per_token, full_context = details.kv_bytes_per_token, details.full_context_bytes
    return [
        ("required", format_bytes(details.needs_bytes)),
        ("weights", format_bytes(details.weights_bytes)),
        ("context, per token", "-" if per_token is None else format_bytes(per_token)),
        ("weights and full context", "-" if full_context is None else format_bytes(full_context)),
    ]


def _worker_rows(worker: WorkerInfo) -> Rows:
    return [
        ("state", worker.state),
        ("resident memory", format_bytes(worker.memory_bytes)),
        ("device", worker.device or "-"),
        ("pid", "-" if worker.pid is None else str(worker.pid)),
        ("in flight", str(worker.in_flight)),
        *(_load_rows(worker.load_phases) if worker.load_phases else []),
    ]


def _load_rows(phases: LoadPhases) -> Rows:
    first_token = phases.first_token_seconds
    return [
        ("load: spawn", "none (standby worker)" if phases.standby else f"{phases.spawn_seconds:.2f} s"),
        ("load: imports", "none (standby worker)" if phases.standby else f"{phases.import_seconds:.2f} s"),
        ("load: weights", f"{phases.weights_seconds:.2f} s"),
        ("load: first token", "-" if first_token is None else f"{first_token:.2f} s"),
    ]


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
