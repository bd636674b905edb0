"""Lists what differs between two runs.

Some differences forbid a comparison, such as different workloads. Others, such as different models, are the
reason to compare.
"""

from analysis.answers.compare import RunDifference
from analysis.reading.pooling import WORKLOAD_SETTINGS, pooling_fields
from loadtest.record import RunInfo
from loadtest.simulator.presets import PRESETS

WORKLOAD_KEYS = ("scenario", *WORKLOAD_SETTINGS)
LOAD_KEYS = ("levels", "level_s", "seed")


def mismatches(a: RunInfo, b: RunInfo) -> list[str]:
    """Lists the differences that forbid a comparison of two runs; empty if the runs can be compared.

    Each entry is text, such as `GPU (1 x H100 against 1 x A100)`.
    """
    if bool(a.arrivals) != bool(b.arrivals):
        return ["how requests came (an open loop against levels of users)"]
    ours, theirs = pooling_fields(a), pooling_fields(b)
    found = [
        f"{name} ({ours[name]} against {theirs[name]})"
        for name in WORKLOAD_KEYS
        if ours[name] != theirs[name]
    ]
    if a.classes != b.classes:
        found.append(f"classes of users ({_class_names(a)} against {_class_names(b)})")
    gpus = [gpu_of(info) for info in (a, b)]
    if None not in gpus and gpus[0] != gpus[1]:
        found.append(f"GPU ({gpus[0]} against {gpus[1]})")
    return found


def _class_names(info: RunInfo) -> str:
    names = ", ".join(each.name for each in info.classes or [])
    return names or "none"


def gpu_of(info: RunInfo) -> str | None:
    """Returns the number and the name of a run's GPUs, as text; None if not known.

    For an embedded server, returns the name of the GPU that it simulates.
    """
    if info.server.simulated is not None:
        preset = PRESETS.get(info.server.simulated)
        return f"simulated {preset.gpu.name if preset else 'GPU'}"
    if info.gpu is None or info.gpu.name is None:
        return None
    return f"{info.gpu.count} x {info.gpu.name}"


def run_differences(a: RunInfo, b: RunInfo) -> list[RunDifference]:
    """Lists the differences that are allowed: the model, the server, its flags, the levels and the seed."""
    ours, theirs = (_may_differ(info) for info in (a, b))
    names = [name for name in ours if ours[name] != theirs[name]]
    return [RunDifference(name=name, a=ours[name], b=theirs[name]) for name in names]


def _may_differ(info: RunInfo) -> dict[str, str]:
    names = {
        name: value
        for name, value in pooling_fields(info).items()
        if name not in (*WORKLOAD_KEYS, "classes", "gpu")
    }
    stepped = {name: str(info.settings.get(name)) for name in LOAD_KEYS}
    return {name: value.strip('"') for name, value in {**names, **stepped}.items()}


def version_of(info: RunInfo) -> str:
    """Returns engine and version of the server, such as `vllm 0.32.0`."""
    return " ".join(filter(None, [info.server.engine, info.server.version])) or "unknown server"
