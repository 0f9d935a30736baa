"""Small environments whose optimal behaviour is known, registered with Gymnasium when this package is imported.

===========================  =================================================================  ==============
id                           what it is                                                         optimal return
===========================  =================================================================  ==============
``latentpg/MultiGoal-v0``    a point in the plane, four goals, all equally good                 0.8
``latentpg/MixingGoals-v0``  nothing to see, reward only for goals not reached lately           14.546875 [1]_
``latentpg/Corridor-v0``     two far ends, found by those who keep going in one direction       1
``latentpg/PeaksBandit-v0``  one step, a number, three equal peaks                              1
``latentpg/ArmsBandit-v0``   one step, six arms, three equally good                             1
``latentpg/Avoiding-v0``     a rod led through three rows of obstacles, 24 equally good ways    1
``latentpg/Routes-v0``       three equally good routes, shown with probabilities .3, .4 and .3  1
===========================  =================================================================  ==============

.. [1] Of policies without memory; the best diagonal Gaussian has 5.85.

Each module says what its environment does, and computes what can be known of it. Each is a Gymnasium environment and a
natively vectorised one that waits to be reset, so that whole-episode groups may use it too.
"""

from latentpg.envs.registration import ENV_IDS, register_envs

register_envs()

__all__ = ["ENV_IDS", "register_envs"]
