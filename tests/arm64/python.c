/* A python3.11 that runs the aarch64 one under qemu.

   It is an x86-64 program without libraries, at the place of the aarch64 Python in its root. The
   kernel can start it without binfmt_misc, so processes that the emulated Python starts with
   sys.executable work too. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    static char *const head[] = {"qemu-aarch64-static", "-cpu", "cortex-a72", "-0",
                                 "/usr/bin/python3.11", "/usr/bin/python3.11-aarch64"};
    const int fixed = sizeof head / sizeof *head;
    char **words = calloc(fixed + argc, sizeof *words); /* the last one stays NULL */
    if (!words)
        return 127;
    for (int i = 0; i < fixed; i++)
        words[i] = head[i];
    for (int i = 1; i < argc; i++)
        words[fixed + i - 1] = argv[i];
    execv("/usr/bin/qemu-aarch64-static", words);
    perror("qemu-aarch64-static");
    return 127;
}
