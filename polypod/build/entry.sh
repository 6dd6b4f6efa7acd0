#!/bin/sh
# What the image does: serve its model, or run the command that it is given.
set -eu
case "${1:-serve}" in
    serve) [ $# = 0 ] || shift; exec polypod serve "$@" ;;
    -*) exec polypod serve "$@" ;;
    *) exec "$@" ;;
esac
