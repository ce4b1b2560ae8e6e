/* Preloaded into Neverball beside glgrab.c, this library prints the camera of each frame and where the ball is.
 *
 * The game draws by fixed-function OpenGL. A perspective projection is multiplied into the projection matrix. The view is then
 * translate, multiply, translate. The floor is tilted about the ball: translate, rotate twice, translate back. Two lines a frame:
 *
 *   GAMECRAFT_VIEW scale_x scale_y m[16]      the projection's first two diagonal entries; the view's matrix, column by column
 *   GAMECRAFT_FLOOR x y z m[16]               the ball, and the matrix of the tilted floor
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

enum { MODELVIEW = 0x1700, PROJECTION = 0x1701, MODELVIEW_MATRIX = 0x0BA6 };
enum { IDLE, PROJECTED, MULTIPLIED, VIEWED };

static void (*real_mode)(unsigned), (*real_multiply)(const float *), (*real_translate)(float, float, float);
static void (*real_rotate)(float, float, float, float), (*get_floats)(unsigned, float *);
static unsigned mode = MODELVIEW;
static int stage = IDLE, rotations = 0;
static float scale[2], last[3];

static void find(void) {
    if (get_floats) return;
    real_mode = dlsym(RTLD_NEXT, "glMatrixMode");
    real_multiply = dlsym(RTLD_NEXT, "glMultMatrixf");
    real_translate = dlsym(RTLD_NEXT, "glTranslatef");
    real_rotate = dlsym(RTLD_NEXT, "glRotatef");
    get_floats = dlsym(RTLD_NEXT, "glGetFloatv");
}

static void print_matrix(const char *name, const float *numbers, int count) {
    char text[512];
    float m[16];
    get_floats(MODELVIEW_MATRIX, m);
    int n = sprintf(text, "%s", name);
    for (int k = 0; k < count; k++) n += sprintf(text + n, " %.6g", numbers[k]);
    for (int k = 0; k < 16; k++) n += sprintf(text + n, " %.6g", m[k]);
    text[n++] = '\n';
    for (int done = 0; done < n;) {
        int written = write(2, text + done, n - done);
        if (written <= 0) break;
        done += written;
    }
}

void glMatrixMode(unsigned wanted) {
    find();
    mode = wanted;
    real_mode(wanted);
}

void glMultMatrixf(const float *m) {
    find();
    real_multiply(m);
    if (mode == PROJECTION && m[11] == -1.0f) {
        stage = PROJECTED;
        scale[0] = m[0];
        scale[1] = m[5];
    } else if (mode == MODELVIEW && stage == PROJECTED) {
        stage = MULTIPLIED;
    }
}

void glRotatef(float angle, float x, float y, float z) {
    find();
    real_rotate(angle, x, y, z);
    rotations++;
}

void glTranslatef(float x, float y, float z) {
    find();
    real_translate(x, y, z);
    if (stage == MULTIPLIED && mode == MODELVIEW) {
        print_matrix("GAMECRAFT_VIEW", scale, 2);
        stage = VIEWED;
    } else if (stage == VIEWED && rotations && fabsf(x + last[0]) + fabsf(y + last[1]) + fabsf(z + last[2]) < 1e-4f) {
        print_matrix("GAMECRAFT_FLOOR", last, 3);
        stage = IDLE;
    }
    rotations = 0;
    last[0] = x;
    last[1] = y;
    last[2] = z;
}
