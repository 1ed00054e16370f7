"""What handlers find in their application."""

from aiohttp import web

from osaurusd.catalog.catalog import Catalog
from osaurusd.config import Config
from osaurusd.pool.pool import Pool

CONFIG = web.AppKey("CONFIG", Config)
CATALOG = web.AppKey("CATALOG", Catalog)
POOL = web.AppKey("POOL", Pool)
