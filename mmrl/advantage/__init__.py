COMPONENTS: dict[str, dict[str, str]] = {}
