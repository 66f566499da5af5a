"""The backbones: one file each, one entry here."""

from sllmr.models.backbones.autoint import AutoInt
from sllmr.models.backbones.backbone import Backbone
from sllmr.models.backbones.dcn import DCN
from sllmr.models.backbones.dcnv2 import DCNv2
from sllmr.models.backbones.deepfm import DeepFM
from sllmr.models.backbones.din import DIN
from sllmr.models.backbones.xdeepfm import XDeepFM
from sllmr.models.config import BackboneName

BACKBONES: dict[BackboneName, type[Backbone]] = {
    "deepfm": DeepFM,
    "xdeepfm": XDeepFM,
    "autoint": AutoInt,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "din": DIN,
}
