"""nnssl_reg: self-configuring deformable registration with features learned from unlabelled scans."""

__all__ = ["load_model", "read_image", "register"]


def __getattr__(name: str):
    """The functions of __all__, imported when they are first asked for: `import nnssl_reg` stays light."""
    if name in ("load_model", "register"):
        from nnssl_reg.commands import api

        return getattr(api, name)
    if name == "read_image":
        from nnssl_reg.imageio.images import read_image

        return read_image
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
