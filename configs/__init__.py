"""The programs' settings, as files of ml_collections."""
