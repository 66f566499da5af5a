"""The backbones: one file each, one entry here."""

from models.backbones.autoint import AutoInt
from models.backbones.dcn import DCN
from models.backbones.dcnv2 import DCNv2
from models.backbones.deepfm import DeepFM
from models.backbones.din import DIN
from models.backbones.xdeepfm import XDeepFM

BACKBONES = {
    "deepfm": DeepFM,
    "xdeepfm": XDeepFM,
    "autoint": AutoInt,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "din": DIN,
}
