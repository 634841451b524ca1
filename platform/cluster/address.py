"""Whether a Ray cluster answers at an address: asked in seconds, where ray.init tries for minutes."""

import re
from typing import Any

from vergence.platform.errors import UserError

ANSWER_S = 5.0
TOKEN = (
    "the cluster does not take our token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)"
)


def check_address(address: str) -> bool:
    """Whether the Ray cluster at `address` has other machines than this one.

    address: as RAY_ADDRESS has it: HOST:PORT, `auto`, or ray://HOST:PORT for Ray's client, behind which all are others.
    UserError in one line unless a cluster answers there, takes us, and has a node on this machine.
    """
    scheme, _, target = address.rpartition("://")
    try:
        if scheme not in ("", "ray") or not (address == "auto" or re.fullmatch(r".+:\d+", target)):
            raise UserError("not the address of a Ray cluster; give HOST:6379, or ray://HOST:10001")
        if scheme:
            _ask_client_server(target)
            return True
        return _ask_cluster(address)
    except UserError as error:
        raise UserError(f"RAY_ADDRESS={address}: {error}") from None
    except Exception as error:  # of gRPC, or Ray's ConnectionError and AuthenticationError
        raise UserError(f"RAY_ADDRESS={address}: {_in_words(error)}") from None


def _ask_client_server(target: str) -> None:
    from ray.core.generated import ray_client_pb2
    from ray.core.generated.ray_client_pb2_grpc import RayletDriverStub

    messages: Any = ray_client_pb2
    with _channel(target) as channel:
        ping = messages.ClusterInfoRequest(type=messages.ClusterInfoType.PING)
        RayletDriverStub(channel).ClusterInfo(ping, timeout=ANSWER_S, metadata=[("client_id", "vergence")])


def _ask_cluster(address: str) -> bool:
    from ray._private import services
    from ray.core.generated import gcs_pb2, gcs_service_pb2
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    messages: Any = gcs_service_pb2
    structures: Any = gcs_pb2
    target = services.canonicalize_bootstrap_address_or_die(address)  # as ray.init does, `auto` too
    with _channel(target) as channel:
        answer = NodeInfoGcsServiceStub(channel).GetAllNodeInfo(
            messages.GetAllNodeInfoRequest(), timeout=ANSWER_S
        )
    here = services.find_node_ids()
    if not here & {node.node_id.hex() for node in answer.node_info_list}:
        raise UserError(
            "this machine is no node of that cluster: run the command on one, make this one a node "
            f"(`ray start --address={target}`), or go through Ray's client (ray://HOST:10001)"
        )
    alive = [node for node in answer.node_info_list if node.state == structures.GcsNodeInfo.ALIVE]
    return any(node.node_id.hex() not in here for node in alive)


def _channel(target: str) -> Any:
    """A gRPC channel that carries Ray's token and certificates."""
    from ray._private.gcs_utils import create_gcs_channel

    return create_gcs_channel(target)


def _in_words(error: Exception) -> str:
    import grpc
    from ray.exceptions import AuthenticationError

    code = error.code() if isinstance(error, grpc.RpcError) else None
    if isinstance(error, AuthenticationError) or code is grpc.StatusCode.UNAUTHENTICATED:
        return TOKEN
    details = error.details() if isinstance(error, grpc.RpcError) else str(error)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"no answer within {ANSWER_S:g} s"
    elif code is grpc.StatusCode.UNIMPLEMENTED or "HTTP/2" in details:
        details = "something else listens there"
    elif code is grpc.StatusCode.UNAVAILABLE:
        details = details.rpartition(": ")[2].rstrip("]")  # the innermost cause
    return (
        f"no Ray cluster answers there ({details}); is it running, and is this its port: that of `ray start` (6379), "
        f"or ray://HOST:10001 for Ray's client?"
    )
