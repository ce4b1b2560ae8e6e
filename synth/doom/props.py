"""An add-on for the engine with what takes need and the game lacks: weather, lamps, a blast, things to hold in the hand.

It consists of text and of pictures that are drawn here, packed as a pk3 (a zip), which the engine loads together with the map.
The engine runs no action in an actor's first state, so each actor begins with an empty tic.
"""

import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np

# Specials on tag 0 affect every sector without a tag: nearly the whole map.
_ONCE = """
ACTOR GcOnce { +NOBLOCKMAP +NOGRAVITY +NOSECTOR }
ACTOR GcLamp : GcOnce { States { Spawn: TNT1 A 1
  TNT1 A 1 Light_RaiseByValue(0, 32)
  Stop } }
ACTOR GcFog : GcOnce { States { Spawn: TNT1 A 1
  TNT1 A 7 Sector_SetFade(0, 40, 41, 42)
  TNT1 A 7 Sector_SetFade(0, 80, 82, 84)
  TNT1 A 7 Sector_SetFade(0, 120, 123, 126)
  TNT1 A 7 Sector_SetFade(0, 160, 164, 168)
  Stop } }
ACTOR GcNoFog : GcOnce { States { Spawn: TNT1 A 1
  TNT1 A 1 Sector_SetFade(0, 0, 0, 0)
  Stop } }
ACTOR GcDark : GcOnce { States { Spawn: TNT1 A 1
  TNT1 AAAAAAAAAAAA 3 Light_LowerByValue(0, 8)
  Stop } }
ACTOR GcNoDark : GcOnce { States { Spawn: TNT1 A 1
  TNT1 A 1 Light_RaiseByValue(0, 96)
  Stop } }
ACTOR GcLightning : GcOnce { States { Spawn: TNT1 A 1
  TNT1 A 0 Sector_SetFade(0, 130, 135, 160)
  TNT1 A 4 Light_RaiseByValue(0, 96)
  TNT1 A 0 Sector_SetFade(0, 0, 0, 0)
  TNT1 A 5 Light_LowerByValue(0, 96)
  TNT1 A 0 Sector_SetFade(0, 160, 165, 190)
  TNT1 A 7 Light_RaiseByValue(0, 96)
  TNT1 A 0 Sector_SetFade(0, 0, 0, 0)
  TNT1 A 5 Light_LowerByValue(0, 64)
  TNT1 A 1 Light_LowerByValue(0, 32)
  Stop } }
ACTOR GcTorchlight : GcOnce { States { Spawn: TNT1 A 1
  TNT1 A 1 Light_RaiseByValue(0, 40)
  Stop } }
ACTOR GcNoTorchlight : GcOnce { States { Spawn: TNT1 A 1
  TNT1 A 1 Light_LowerByValue(0, 40)
  Stop } }
"""

_BLAST = """
ACTOR GcBlast { +NOBLOCKMAP +NOGRAVITY +NOINTERACTION Scale 1.2 States { Spawn:
  BEXP A 2 Bright
  BEXP B 5 Bright Light_RaiseByValue(0, 64)
  BEXP C 5 Bright Light_LowerByValue(0, 32)
  BEXP D 10 Bright Light_LowerByValue(0, 32)
  BEXP E 10 Bright
  Stop } }
"""

# Particles fall through everything, in a wedge in front of the player where they are visible.
_FALLING = """
ACTOR {particle} {{ +NOBLOCKMAP +NOGRAVITY +NOINTERACTION Scale {scale} States {{ Spawn: {sprite} A {life} Bright
  Stop }} }}
ACTOR {cloud} {{ +NOBLOCKMAP +NOGRAVITY +NOCLIP States {{ Spawn: TNT1 A 1
 Fall:
  TNT1 {near} 0 A_SpawnItemEx("{particle}", random(24, 120), random(-110, 110), random(60, 100), 0, 0, {speed}, 0, {flags})
  TNT1 {far} 0 A_SpawnItemEx("{particle}", random(120, 320), random(-300, 300), random(60, 150), 0, 0, {speed}, 0, {flags})
  TNT1 A 1
  Goto Fall }} }}
"""
_FLAGS = "SXF_NOCHECKPOSITION"

_HELD = """
ACTOR {name} : Weapon {{ Weapon.SelectionOrder 1 States {{
 Ready: {sprite} {frames} 4 Bright A_WeaponReady
  Loop
 Select: {sprite} A 1 A_Raise
  Loop
 Deselect: {sprite} A 1 A_Lower
  Loop
 Fire: {sprite} A 1
  Goto Ready
 Spawn: {sprite} A -1
  Stop }} }}
"""


def write_addon(path: Path) -> None:
    """Write the pk3. The same code always writes the same bytes."""
    snow = {"particle": "GcFlake", "cloud": "GcSnow", "sprite": "GCFL", "scale": 0.35, "life": 45, "speed": -3}
    rain = {"particle": "GcDrop", "cloud": "GcRain", "sprite": "GCDR", "scale": 0.5, "life": 9, "speed": -18}
    amounts = {"near": "A" * 8, "far": "A" * 24, "flags": _FLAGS}
    held = {"GcKnife": ("GCKN", "A"), "GcTorch": ("GCTO", "AB"), "GcPhone": ("GCPH", "AAAAAB")}
    text = _ONCE + _BLAST + "".join(_FALLING.format(**kind, **amounts) for kind in (snow, rain))
    text += "".join(_HELD.format(name=name, sprite=sprite, frames=frames) for name, (sprite, frames) in held.items())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as pk3:
        pk3.writestr(zipfile.ZipInfo("decorate.txt"), text)
        for name, data in _sprites().items():
            pk3.writestr(zipfile.ZipInfo(f"sprites/{name}.png"), data)


def _sprites() -> dict[str, bytes]:
    held = {"GCKNA0": _knife(), "GCTOA0": _torch(0), "GCTOB0": _torch(6), "GCPHA0": _phone(False), "GCPHB0": _phone(True)}
    falling = {"GCFLA0": _flake(), "GCDRA0": _drop()}
    return {name: _png(picture, (0, 0)) for name, picture in falling.items()} | {
        # held things are drawn on a screen of 320 x 200, 32 lower; these end at its lower edge, right of the middle
        name: _png(picture, (-170, picture.shape[0] - 174))
        for name, picture in held.items()
    }


def _blank(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 4), np.uint8)


def _flake() -> np.ndarray:
    return cv2.circle(_blank(9, 9), (4, 4), 3, (255, 255, 255, 255), -1)


def _drop() -> np.ndarray:
    picture = _blank(40, 2)
    picture[:] = (235, 205, 185, 255)
    return picture


def _hand(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    return cv2.ellipse(picture, (width // 2, height - 8), (width // 2 - 4, 22), 0, 0, 360, (70, 105, 150, 255), -1)


def _knife() -> np.ndarray:
    picture = _blank(96, 48)
    blade = np.array([[22, 60], [20, 14], [26, 0], [32, 18], [32, 60]])
    cv2.fillPoly(picture, [blade], (205, 200, 195, 255))
    cv2.rectangle(picture, (12, 58), (40, 63), (60, 60, 70, 255), -1)
    return _hand(picture)


def _torch(sway: int) -> np.ndarray:
    picture = _blank(110, 48)
    cv2.rectangle(picture, (20, 46), (30, 100), (30, 60, 95, 255), -1)
    cv2.ellipse(picture, (25 + sway // 3, 30), (14, 28 - sway), 0, 0, 360, (0, 120, 255, 255), -1)
    cv2.ellipse(picture, (25, 36), (8, 16 - sway // 2), 0, 0, 360, (120, 235, 255, 255), -1)
    return _hand(picture)


def _phone(touched: bool) -> np.ndarray:
    picture = _hand(_blank(84, 48))
    cv2.rectangle(picture, (8, 2), (40, 66), (25, 25, 25, 255), -1)
    cv2.rectangle(picture, (11, 7), (37, 58), (240, 190, 120, 255) if touched else (200, 140, 60, 255), -1)
    if touched:
        cv2.rectangle(picture, (15, 20), (33, 34), (255, 255, 255, 255), -1)
    return picture


def _png(picture: np.ndarray, offset: tuple[int, int]) -> bytes:
    """Return a PNG with the engine's own chunk for the origin of the sprite (`grAb`) after the header."""
    ok, data = cv2.imencode(".png", picture)
    assert ok, picture.shape
    body = b"grAb" + struct.pack(">ii", *offset)
    chunk = struct.pack(">I", 8) + body + struct.pack(">I", zlib.crc32(body))
    png = bytes(data)
    return png[:33] + chunk + png[33:]
