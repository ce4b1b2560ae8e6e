/* Preloaded into a game of id Tech 3 (ioquake3: OpenArena) beside glgrab.c, this library prints what the renderer draws.
 *
 * The renderer is a library with a table of functions. SDL_LoadFunction hands out its entry GetRefAPI, which is wrapped here, and
 * with it the functions that name a model, add an entity and draw a scene. One write to stderr for every scene of the world:
 *
 *   GAMECRAFT_REF x y width height fov_x fov_y eye[3] forward[3] left[3] up[3] time_ms   (19 numbers)
 *   GAMECRAFT_ENT type flags name x y z             (the models and sprites of NAMED; a sprite's name is "@" and its shader)
 *
 * The lines come before the buffer swap of the same frame. Offsets are those of refdef_t and refEntity_t in tr_types.h.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MODEL_CALL = 2, SHADER_CALL = 4, CLEAR_CALL = 9, ENTITY_CALL = 10, SCENE_CALL = 15, NO_WORLD = 1, NAMES = 8192 };

enum { SPRITE = 2 }; /* of an entity's type */

/* Weapons with their flashes, movers "*12", players, what they throw, what it leaves, and what lies about. */
static const char *const NAMED[] = {"weapons2", "*",    "players", "boom",     "ammo/",         "weaphits",
                                    "misc/tele", "gibs", "powerups", "sprites/plasma", "bloodExplosion", "viewBloodBlend"};
static char models[NAMES][64], shaders[NAMES][64], entities[1 << 16];
static int filled = 0;
static void **table;
static int (*real_model)(const char *), (*real_shader)(const char *);
static void (*real_clear)(void), (*real_entity)(const void *), (*real_scene)(const void *);
static void *(*real_api)(int, void *);

static int name_model(const char *name) {
    int handle = real_model(name);
    if (handle >= 0 && handle < NAMES) strncpy(models[handle], name, sizeof models[0] - 1);
    return handle;
}

static int name_shader(const char *name) {
    int handle = real_shader(name);
    if (handle >= 0 && handle < NAMES) strncpy(shaders[handle], name, sizeof shaders[0] - 1);
    return handle;
}

static void clear_scene(void) {
    filled = 0;
    real_clear();
}

static void add_entity(const void *entity) {
    const int *whole = entity;
    const float *real = entity;
    int sprite = whole[0] == SPRITE && whole[2] <= 0, handle = sprite ? whole[28] : whole[2];
    const char *name = handle > 0 && handle < NAMES ? (sprite ? shaders : models)[handle] : "";
    for (unsigned k = 0; k < sizeof NAMED / sizeof *NAMED; k++) {
        if (*name && strstr(name, NAMED[k]) && filled < (int)sizeof entities - 256) {
            filled += sprintf(entities + filled, "GAMECRAFT_ENT %d %d %s%s %.3f %.3f %.3f\n", whole[0], whole[1], sprite ? "@" : "",
                              name, real[17], real[18], real[19]);
            break;
        }
    }
    real_entity(entity);
}

static void draw_scene(const void *scene) {
    static char text[sizeof entities + 1024];
    const int *whole = scene;
    const float *real = scene;
    if (!(whole[19] & NO_WORLD)) { /* the world, and not a head in the status bar */
        int n = sprintf(text, "GAMECRAFT_REF %d %d %d %d %.5f %.5f", whole[0], whole[1], whole[2], whole[3], real[4], real[5]);
        for (int k = 6; k < 9; k++) n += sprintf(text + n, " %.4f", real[k]);
        for (int k = 9; k < 18; k++) n += sprintf(text + n, " %.6f", real[k]);
        n += sprintf(text + n, " %d\n", whole[18]);
        memcpy(text + n, entities, filled);
        n += filled;
        for (int done = 0; done < n;) {
            int count = write(2, text + done, n - done);
            if (count <= 0) break;
            done += count;
        }
    }
    filled = 0;
    real_scene(scene);
}

static void *wrap_api(int version, void *import) {
    void **functions = real_api(version, import);
    if (functions != table || functions[SCENE_CALL] != (void *)draw_scene) {
        table = functions;
        real_model = functions[MODEL_CALL];
        real_clear = functions[CLEAR_CALL];
        real_entity = functions[ENTITY_CALL];
        real_scene = functions[SCENE_CALL];
        real_shader = functions[SHADER_CALL];
        functions[MODEL_CALL] = name_model;
        functions[SHADER_CALL] = name_shader;
        functions[CLEAR_CALL] = clear_scene;
        functions[ENTITY_CALL] = add_entity;
        functions[SCENE_CALL] = draw_scene;
    }
    return functions;
}

void *SDL_LoadFunction(void *handle, const char *name) {
    static void *(*real)(void *, const char *);
    if (!real) real = dlsym(RTLD_NEXT, "SDL_LoadFunction");
    void *function = real(handle, name);
    if (!function || strcmp(name, "GetRefAPI")) return function;
    real_api = function;
    return wrap_api;
}
