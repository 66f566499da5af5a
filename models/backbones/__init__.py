"""The backbones: one file each, one entry here."""

from models.backbones.dcnv2 import DCNv2

BACKBONES = {"dcnv2": DCNv2}
