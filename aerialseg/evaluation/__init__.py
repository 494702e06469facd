"""How good predicted masks are, measured against true ones on the same grid."""
