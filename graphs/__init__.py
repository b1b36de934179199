"""How messages flow: the episode graph, the round graph, rollout of many episodes, drawing."""
