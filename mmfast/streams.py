"""The streams of the counter-based generator. They keep noise for different purposes separate, whatever the seed."""

TRAIN_NOISE = 0
TIMESTEP = 1
GIVEN = 2
ORDER = 3
SAMPLE = 4
EVALUATE = 5
EVALUATE_TIME = 6
MASK = 7
MASK_RATIO = 8
GROUND = 9
HEAD_NOISE = 10
ERROR = 11
LABELLED = 12
FLIP = 13
VALIDATE = 14
