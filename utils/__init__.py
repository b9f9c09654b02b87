"""Seeding, run folder, checkpoint, results, optimisers and schedules. Imports nothing of the project."""

from utils.registry import Registry, of

# What ``optimizer`` can name: optimizer(parameters, lr, momentum, weight_decay).
OPTIMIZERS = Registry(of("utils.optim", "rmsprop", "adam", "sgd"))
# What ``lr_policy`` can name: policy(epoch, epochs), the factor of the learning rate.
LR_POLICIES = Registry(of("utils.optim", "constant_lr", "cosine_lr"))
