"""nvdiffrast, which upstream uses only through kaolin and by itself."""
