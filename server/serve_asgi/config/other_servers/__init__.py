"""The options of other servers by what they are called here, for hints and for `serve import-config`."""
