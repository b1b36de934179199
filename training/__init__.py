"""How a policy improves: selection, rows, trainers, evaluation, gate, stages of a round, recipes."""
