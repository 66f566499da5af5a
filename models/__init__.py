"""Features, embeddings, backbones, gate, losses and the ranking model: plain TensorFlow, no TFX, no LLM."""

import os

# TFRS 0.7.7 refuses Keras 3. The switch works only before TensorFlow is first imported.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
