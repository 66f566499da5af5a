"""The distribution strategy, and sums over its replicas, so that a loss is that of the whole batch and not of a slice.

Without a strategy there is one replica, and each sum is what it is given. Under a strategy the sums are taken in a
replica's step, in the same order by every replica.
"""

import tensorflow as tf

from sllmr.models.config import TrainConfig
from sllmr.models.errors import UserError


def distribution(config: TrainConfig) -> tf.distribute.Strategy:
    """The strategy of `train.strategy`: TensorFlow's default one, or a replica on each GPU, without any on each CPU
    device.

    Raises:
        UserError: mirrored, and there is one device.
    """
    if config.strategy is None:
        return tf.distribute.get_strategy()
    gpus = tf.config.list_logical_devices("GPU")
    devices = [d.name for d in gpus or tf.config.list_logical_devices("CPU")]
    if len(devices) < 2:
        raise UserError(
            f"train.strategy mirrored needs at least two devices of a kind on this machine, got {', '.join(devices)}; "
            "remove train.strategy, or run on a machine with several GPUs"
        )
    # MirroredStrategy's own choice, CollectiveAllReduce, mixes up its operations where gradients of embedding tables of
    # different lengths are among them (TensorFlow 2.21: "Shape mismatch in the collective instance").
    reduction = tf.distribute.NcclAllReduce() if gpus else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


def replica_sum(value: tf.Tensor) -> tf.Tensor:
    """The sum of `value` over the replicas, of the same shape."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def batch_mean(values: tf.Tensor) -> tf.Tensor:
    """sum of this replica's values / number of all replicas' values: over the replicas these add up to the mean.

    Args:
        values: float32 [any]; none on some replica, at least one on another.
    """
    return tf.reduce_sum(values) / replica_sum(tf.cast(tf.size(values), values.dtype))


def replicas_with(distinct: tf.Tensor) -> tf.Tensor:
    """How many replicas hold each of these values, float32 [values].

    Args:
        distinct: int32 or int64 [values], each once.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tf.ones(tf.shape(distinct))
    everywhere = tf.sort(context.all_gather(distinct, axis=0))
    ends = [tf.searchsorted(everywhere, distinct, side=side) for side in ("left", "right")]
    return tf.cast(ends[1] - ends[0], tf.float32)
