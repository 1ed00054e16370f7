import { useEffect, useRef, useState } from "preact/hooks";

import { imageFiles, toDataUrl } from "../../chat/images";
import { modelOf } from "../../chat/models";
import { change, send, stop, streaming } from "../../chat/store";
import type { Conversation } from "../../chat/types";

const MAX_IMAGES = 8;
const MAX_HEIGHT = 240;

export function Composer({ conversation }: { conversation: Conversation }) {
  const [text, setText] = useState("");
  const [images, setImages] = useState<string[]>([]);
  const [problem, setProblem] = useState("");
  const input = useRef<HTMLTextAreaElement>(null);
  const model = modelOf(conversation);
  const running = streaming.value !== null;
  useEffect(() => {
    // Not on touch screens, where the keyboard would cover the conversation.
    if (matchMedia("(hover: hover)").matches) input.current?.focus();
  }, []);
  useEffect(() => {
    if (input.current) grow(input.current);
  }, [text]);

  const attach = async (files: File[]) => {
    if (!files.length) return;
    if (!model?.vision) {
      setProblem(`${model?.name ?? "This model"} does not accept images. Choose a model with vision.`);
      return;
    }
    try {
      const urls = await Promise.all(files.map(toDataUrl));
      setImages((current) => [...current, ...urls].slice(0, MAX_IMAGES));
      setProblem("");
    } catch {
      setProblem("This file is not an image that the browser can read.");
    }
  };
  const submit = () => {
    if (running || !model || (!text.trim() && !images.length)) return;
    // The choice is kept, even if another model becomes the default.
    change(conversation.id, { model: model.name }, false);
    send(conversation.id, text.trim(), images);
    setText("");
    setImages([]);
    setProblem("");
  };

  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
      onDragOver={(event) => event.preventDefault()}
      onDrop={(event) => {
        event.preventDefault();
        void attach(imageFiles(event.dataTransfer?.files));
      }}
    >
      {images.length > 0 && (
        <ul class="attachments" aria-label="Attached images">
          {images.map((url, index) => (
            <li key={index}>
              <img src={url} alt={`Image ${index + 1}`} />
              <button
                type="button"
                class="compact"
                aria-label={`Remove image ${index + 1}`}
                onClick={() => setImages(images.filter((_, each) => each !== index))}
              >
                Remove
              </button>
            </li>
          ))}
        </ul>
      )}
      <p class="danger-text small" role="alert">
        {problem}
      </p>
      <div class="composer-row">
        {model?.vision && <AttachButton onFiles={(files) => void attach(files)} />}
        <textarea
          id="composer"
          ref={input}
          rows={1}
          aria-label="Message"
          placeholder={model ? `Message ${model.name}` : "No chat model is available"}
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
          onPaste={(event) => {
            const files = imageFiles(event.clipboardData?.files);
            if (!files.length) return;
            event.preventDefault();
            void attach(files);
          }}
          onKeyDown={(event) => {
            if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
              event.preventDefault();
              submit();
            }
            if (event.key === "Escape" && running) stop();
          }}
        />
        {running ? (
          <button type="button" onClick={stop}>
            Stop
          </button>
        ) : (
          <button type="submit" class="primary" disabled={!model || (!text.trim() && !images.length)}>
            Send
          </button>
        )}
      </div>
    </form>
  );
}

function AttachButton({ onFiles }: { onFiles: (files: File[]) => void }) {
  const chooser = useRef<HTMLInputElement>(null);
  return (
    <>
      <input
        ref={chooser}
        class="offscreen"
        type="file"
        accept="image/*"
        multiple
        tabIndex={-1}
        aria-hidden="true"
        onChange={(event) => {
          onFiles(imageFiles(event.currentTarget.files));
          event.currentTarget.value = "";
        }}
      />
      <button type="button" onClick={() => chooser.current?.click()}>
        Image
      </button>
    </>
  );
}

/** Give the field the height of its text, up to a limit. */
function grow(field: HTMLTextAreaElement): void {
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, MAX_HEIGHT)}px`;
}
