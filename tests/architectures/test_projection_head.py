"""The projection head: cosines with prototypes."""

import torch

from nnssl_reg.architectures.projection_head import ProjectionHead


def head(seed: int = 0) -> ProjectionHead:
    return ProjectionHead(12, 16, 8, 20, generator=torch.Generator().manual_seed(seed))


def test_outputs_are_cosines_with_the_prototypes():
    net, tokens = head(), torch.randn(5, 7, 12)
    out = net(tokens)
    assert out.shape == (5, 7, 20)
    assert out.abs().max() <= 1 + 1e-5
    net.prototypes.data *= 3  # only directions count
    torch.testing.assert_close(net(tokens), out)


def test_the_same_seed_gives_the_same_head():
    assert all(torch.equal(a, b) for a, b in zip(head(1).parameters(), head(1).parameters()))
    assert not torch.equal(head(1).prototypes, head(2).prototypes)


def test_a_zero_token_has_finite_outputs_and_gradients():
    net = head()
    net(torch.zeros(2, 12)).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
