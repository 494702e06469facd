"""What makes outputs open well in QGIS: styles, mosaics, the project, and the care for what its user has changed."""
