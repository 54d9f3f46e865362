from several_questions import alone, several  # noqa: F401  (fixtures)
