"""What knows no model and no data: errors, settings, the registry, files, pictures, progress, where things are kept.

Everything else may use it; it uses nothing of this package.
"""
