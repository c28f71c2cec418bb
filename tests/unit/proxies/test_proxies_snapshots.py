"""The snapshot suite over a proxy, the real service and the namespaced store."""

import pytest

from cradled.core.scope import Scope
from cradled.core.snapshots import Snapshotter
from cradled.errors import InvalidArgument, Unimplemented
from cradled.proxies.snapshots import ProxySnapshotter
from cradled.rpc.stub import Transport
from cradled.testing.snapshot_suite import SnapshotSuite


@pytest.fixture
async def snapshotter(transport: Transport) -> ProxySnapshotter:
    return ProxySnapshotter(transport, Scope("test"), "memory")


class TestProxySnapshotter(SnapshotSuite):
    async def test_remove(self, snapshotter: Snapshotter) -> None:
        """All of it but the clean-up at its end, which the namespaced store does not offer."""
        with pytest.raises(Unimplemented, match="does not implement Cleanup"):
            await super().test_remove(snapshotter)


async def test_unknown_snapshotter(transport: Transport) -> None:
    with pytest.raises(InvalidArgument, match="snapshotter not loaded: x"):
        await ProxySnapshotter(transport, Scope("test"), "x").stat("key")
