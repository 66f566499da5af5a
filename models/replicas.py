"""The distribution strategy, and sums over its replicas, so that a loss is that of the whole batch and not of a slice.

Without a strategy there is one replica, and each sum returns its argument. Under a strategy, every replica must call
the sums within its step, in the same order.
"""

import tensorflow as tf

from sllmr.models.config import TrainConfig
from sllmr.models.errors import UserError


def distribution(config: TrainConfig) -> tf.distribute.Strategy:
    """The strategy of `train.strategy`: TensorFlow's default, or for mirrored a replica on each GPU, on a machine
    without a GPU on each CPU device.

    Raises:
        UserError: the strategy is mirrored, and there is only one device.
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
    # MirroredStrategy's default, CollectiveAllReduce, mixes up its operations if embedding tables of different lengths
    # have gradients (TensorFlow 2.21: "Shape mismatch in the collective instance").
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
        values: float32 [any]; may be empty on a replica, but not on all.
    """
    return tf.reduce_sum(values) / replica_sum(tf.cast(tf.size(values), values.dtype))


def replicas_with(distinct: tf.Tensor) -> tf.Tensor:
    """How many replicas hold each of these values, float32 [values].

    Args:
        distinct: int32 or int64 [values], without duplicates.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tf.ones(tf.shape(distinct))
    everywhere = tf.sort(context.all_gather(distinct, axis=0))
    ends = [tf.searchsorted(everywhere, distinct, side=side) for side in ("left", "right")]
    return tf.cast(ends[1] - ends[0], tf.float32)
