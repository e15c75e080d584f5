"""What the intensities of an image say about its modality."""

import numpy as np

from nnssl_reg.geometry.image import Image

_HU_SIGN = -100  # air and fat lie below it, and no MR does


def guess_modality(image: Image) -> str:
    """ "CT" where the intensities can only be Hounsfield units (a percent of them at or below -100), else "MR"."""
    sample = image.array.reshape(-1)[:: max(1, image.array.size // 200_000)]
    return "CT" if float(np.percentile(sample, 1)) <= _HU_SIGN else "MR"
