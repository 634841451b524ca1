"""Names of other libraries that they do not promise to keep: each with the part of ours that breaks without it.

A failure here, after an upgrade, says where to look; pyproject.toml bounds the versions for the same reason.
"""

import importlib
import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vergence.platform.cluster.session import CLUSTER_ENVIRONMENT, ENVIRONMENT, OWN_ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
ENGINE, SESSION, ADDRESS = (
    "platform/train/engine.py",
    "platform/cluster/session.py",
    "platform/cluster/address.py",
)

NAMES = [
    # module, expression, file of ours, what breaks there
    ("ray._private.state", "available_resources_per_node", SESSION, "what is free on each node"),
    ("ray.job_config", "JobConfig._runtime_env_has_working_dir", SESSION, "the workers' import path"),
    ("ray.util.client", "RayAPIStub.is_connected", SESSION, "the nodes of a ray:// session"),
    ("ray.util.placement_group", "placement_group_table", SESSION, "what workers wait for"),
    (
        "ray._private.services",
        "canonicalize_bootstrap_address_or_die",
        ADDRESS,
        "the host that RAY_ADDRESS means",
    ),
    ("ray._private.services", "find_node_ids", ADDRESS, "the line for a machine that is no node"),
    ("ray._private.gcs_utils", "create_gcs_channel", ADDRESS, "the line for a cluster that does not answer"),
    ("ray.core.generated.gcs_service_pb2_grpc", "NodeInfoGcsServiceStub", ADDRESS, "the same"),
    ("ray.core.generated.gcs_service_pb2", "GetAllNodeInfoRequest", ADDRESS, "the same"),
    ("ray.core.generated.gcs_pb2", "GcsNodeInfo.ALIVE", ADDRESS, "whether a cluster has other machines"),
    ("ray.core.generated.ray_client_pb2_grpc", "RayletDriverStub", ADDRESS, "the same, for ray://"),
    ("ray.core.generated.ray_client_pb2", "ClusterInfoType.PING", ADDRESS, "the same, for ray://"),
    (
        "ray.train",
        "FailureConfig().controller_failure_limit",
        "platform/cluster/driver.py",
        "a start that fails ends",
    ),
    (
        "mlflow.tracking._tracking_service.utils",
        "_tracking_uri",
        "platform/mlflow_store.py",
        "MLflow's current store as it was",
    ),
    (
        "mlflow.tracking._model_registry.utils",
        "_registry_uri",
        "platform/mlflow_store.py",
        "the same",
    ),
    ("ray.train", "get_preemption_info", "platform/cluster/worker.py", "the commit before a preemption"),
    (
        "ray.data._internal.execution.execution_callback",
        "ExecutionCallback.on_execution_step",
        "platform/cluster/feed.py",
        "Ray Data's loop spins and takes a core from training",
    ),
    ("ray.data", "DataContext().custom_execution_callback_classes", "platform/cluster/feed.py", "the same"),
    (
        "ray.data",
        "DataContext().raise_original_map_exception",
        "platform/cluster/feed.py",
        "what must not be retried is",
    ),
    ("torch", "ops.mkldnn._is_mkldnn_bf16_supported", "platform/train/machine.py", "precision: auto on CPUs"),
    ("torch", "_foreach_norm", ENGINE, "the gradient's norm"),
    ("torch", "_foreach_lerp_", "methods/parts/ema.py", "a teacher's moving average"),
    ("torch", "_foreach_lerp_", "platform/train/norms.py", "running statistics"),
    ("torch", "_foreach_add_", "platform/train/norms.py", "the number of their updates"),
    ("torch", "_foreach_norm", "platform/train/optim/lars.py", "LARS"),
    ("torch", "_foreach_mul_", "platform/train/optim/lars.py", "LARS"),
    ("torch.nn", "Module()._modules", "platform/train/norms.py", "batch norms stay as they are"),
    ("torch.nn.modules.batchnorm", "_BatchNorm", "platform/train/norms.py", "norm groups"),
    (
        "torch.nn.modules.batchnorm",
        "_NormBase",
        "platform/train/optim/groups.py",
        "norms are decayed like weights",
    ),
    ("timm.models.resnet", "BasicBlock.zero_init_last", "methods/parts/backbones.py", "zero_init_residual"),
    ("timm.models.resnet", "Bottleneck.zero_init_last", "methods/parts/backbones.py", "zero_init_residual"),
    ("deepspeed.ops", "__compatible_ops__", ENGINE, "the compiler runs, and its lock hangs later runs"),
    *(
        (
            f"mlflow.store.{module}.dbmodels.models",
            name,
            "platform/mlflow_moved.py",
            "a store that moved loses its files",
        )
        for module, name in (
            ("tracking", "SqlExperiment.artifact_location"),
            ("tracking", "SqlRun.artifact_uri"),
            ("tracking", "SqlLoggedModel.artifact_location"),
            ("model_registry", "SqlModelVersion.storage_location"),
        )
    ),
]
ENGINE_NAMES = {
    # of a DeepSpeed engine at stage 2: expression -> what breaks
    "zero.optimizer.state": "the optimiser's state in commits",
    "zero.optimizer.param_groups": "the schedule of the learning rate",
    "zero.averaged_gradients": "a skipped step leaks into the next",
    "zero.all_grad_tensors": "a skipped step leaks into the next",
    "zero.bit16_groups_flat": "state by name",
    "zero.parallel_partitioned_bit16_groups": "state by name",
    "zero.single_partition_of_fp32_groups": "state by name",
    "parameter._hp_mapping.get_lp_grad_fragment": "the gradient's norm, and the check that it is finite",
    "parameter._index_in_param_group": "the gradient's norm, and the check that it is finite",
    "deepspeed.set_gradient_accumulation_boundary": "steps of several micro-batches",
}
VALUES = [
    # module, constant, what we rely on
    ("mlflow.pytorch", "_EXPORTED_TORCH_MODEL_FILE_NAME", "model.pt2"),  # platform/encoders/load.py
    ("mlflow.utils.model_utils", "EXTRA_FILES_KEY", "extra_files"),
    ("ray._private.ray_constants", "RAY_WORKER_NICENESS", "RAY_worker_niceness"),
    ("ray._common.usage.usage_constants", "USAGE_STATS_ENABLED_ENV_VAR", "RAY_USAGE_STATS_ENABLED"),
    ("ray.train.v2._internal.constants", "ENABLE_PRINT_PATCH_ENV_VAR", "RAY_TRAIN_ENABLE_PRINT_PATCH"),
    (
        "ray.train.v2._internal.constants",
        "WORKER_GROUP_START_TIMEOUT_S_ENV_VAR",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S",
    ),
    (
        "ray._private.accelerators.accelerator",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
    ),
    ("ray._private.authentication.authentication_token_setup", "AUTH_MODE_ENV_VAR", "RAY_AUTH_MODE"),
]


@pytest.mark.parametrize(("module", "name", "file", "breaks"), NAMES)
def test_a_private_name_is_there_and_still_used_where_the_list_says(
    module: str, name: str, file: str, breaks: str
) -> None:
    if module.split(".")[0] in ("timm", "torchvision"):
        importlib.import_module("vergence.methods.torchvision_shim")
    try:
        eval(f"module.{name}", {"module": importlib.import_module(module)})
    except AttributeError:
        pytest.fail(f"{module}.{name} is gone; {file}: {breaks}")
    last = name.split(".")[-1]
    assert last in (ROOT / file).read_text(), f"{file} no longer uses {name}: drop it from this list"


@pytest.mark.parametrize(("module", "constant", "value"), VALUES)
def test_a_word_that_we_write_out_is_still_the_librarys(module: str, constant: str, value: str) -> None:
    assert getattr(importlib.import_module(module), constant) == value


def test_every_setting_of_ours_is_one_that_ray_reads() -> None:
    import ray.data.context

    known = {value for _, _, value in VALUES}
    assert "RAY_DATA_DISABLE_PROGRESS_BARS" in inspect.getsource(ray.data.context)
    known |= {
        "RAY_DATA_DISABLE_PROGRESS_BARS",
        "GLIBC_TUNABLES",
        "RAY_AIR_NEW_OUTPUT",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS",
    }
    import ray.tune.utils.callback

    assert "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS" in inspect.getsource(ray.tune.utils.callback)
    import ray.tune.experimental.output

    assert "RAY_AIR_NEW_OUTPUT" in inspect.getsource(ray.tune.experimental.output)
    assert (ENVIRONMENT | OWN_ENVIRONMENT | CLUSTER_ENVIRONMENT).keys() <= known


def test_deepspeed_lays_its_state_out_as_the_engine_reads_it() -> None:
    code = f"""
import json
import torch
from torch import nn
from vergence.platform.train.engine import Engine
from vergence.platform.train.optim.config import OptimConfig
from vergence.platform.train.schedule import ScheduleConfig

method = nn.Module()
method.encoder = nn.Linear(3, 2)
engine = Engine(
    method, OptimConfig(name="adamw", lr=0.1), ScheduleConfig(), epochs=1, global_batch=4, zero=2, precision="fp32",
    device=torch.device("cpu")
)
engine.backward(method.encoder(torch.ones(4, 3)).sum(), True)
scope = dict(zero=engine._zero, deepspeed=engine._deepspeed, parameter=method.encoder.weight)
missing = []
for expression in {list(ENGINE_NAMES)!r}:
    try:
        eval(expression, scope)
    except AttributeError:
        missing.append(expression)
print(json.dumps(missing))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {name: ENGINE_NAMES[name] for name in json.loads(done.stdout.splitlines()[-1])} == {}
    source = (ROOT / ENGINE).read_text()
    assert [name for name in ENGINE_NAMES if name.rsplit(".")[-1] not in source] == []


@pytest.mark.parametrize("library", ["deepspeed", "mlflow", "ray", "timm", "torch", "torchvision"])
def test_a_library_whose_insides_we_use_is_bounded_and_the_tested_version_lies_within(library: str) -> None:
    requirements = map(
        Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    )
    (bounds,) = (requirement.specifier for requirement in requirements if requirement.name == library)
    assert any(bound.operator == "<" for bound in bounds)
    tested = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert tested[library] in bounds
