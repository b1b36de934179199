"""Who acts: policies (models) and the roles they take (actor, refiner, reflector, judge), prompts, chat ↔ tokens."""
