"""Sampling options that several commands share."""

from typing import Annotated

from cyclopts import Parameter

Temperature = Annotated[
    float, Parameter(help="lower values make the output more deterministic; 0 is greedy")
]
TopK = Annotated[int, Parameter(help="keep the k most probable tokens; 0 keeps all")]
TopP = Annotated[
    float, Parameter(help="keep the most probable tokens up to this summed probability")
]
MinP = Annotated[
    float, Parameter(help="keep tokens with at least this share of the highest probability")
]
RepetitionPenalty = Annotated[
    float, Parameter(help="values above 1 make tokens that occurred before less probable")
]
